"""CUDA's driver in a new rank."""

from __future__ import annotations

import ctypes
import time

from config.errors import EngineError

_MPS_SERVER_NOT_READY = 807
_PATIENCE = 20.0
"""Seconds that an MPS server may take to come back after a fault, or to end another client."""
_INTERVAL = 0.05


def start() -> None:
    """Initialise it. torch would remember an MPS server that takes no clients just now as having no GPU at all.

    Raises:
        EngineError: it does not start.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    deadline = time.monotonic() + _PATIENCE
    while (error := driver.cuInit(0)) == _MPS_SERVER_NOT_READY and time.monotonic() < deadline:
        time.sleep(_INTERVAL)
    if error != 0:
        raise EngineError(f"CUDA's driver does not start: error {error}")
