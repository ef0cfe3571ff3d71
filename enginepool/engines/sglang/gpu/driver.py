"""Starts the CUDA driver in a new rank."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from config.errors import EngineError

_NOT_NOW = frozenset({805, 806, 807})
"""CUDA_ERROR_MPS_CONNECTION_FAILED, _RPC_FAILURE, _SERVER_NOT_READY: the server recovers from a fault or is ending."""
_PATIENCE = 20.0
"""Seconds for an MPS server to recover from a fault or to end another client."""
_INTERVAL = 0.05
"""Seconds between attempts."""


def start() -> None:
    """Create the first GPU's context, which torch will use. Left to torch, one refusal by an MPS server would be
    remembered forever as having no GPU at all.

    Raises:
        EngineError: the driver does not start.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    device, context = ctypes.c_int(), ctypes.c_void_p()
    deadline = time.monotonic() + _PATIENCE
    _insist(lambda: driver.cuInit(0), deadline)
    _insist(lambda: driver.cuDeviceGet(ctypes.byref(device), 0), deadline)
    _insist(lambda: driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), deadline)


def _insist(call: Callable[[], int], deadline: float) -> None:
    while (error := call()) in _NOT_NOW and time.monotonic() < deadline:
        time.sleep(_INTERVAL)
    if error != 0:
        raise EngineError(f"the CUDA driver does not start: error {error}")
