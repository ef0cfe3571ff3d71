"""Recognises errors after which neither this process nor any other client of its MPS daemon can use the GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

_FATAL = re.compile(
    r"illegal memory access|illegal instruction|illegal address space|misaligned address|invalid program counter"
    r"|hardware stack error|unspecified launch failure|uncorrectable ECC|remote procedural call between the MPS server",
    re.IGNORECASE,
)
"""Texts of CUDA 13's cudaGetErrorString. Not included: a device-side assert and a terminated MPS client, which affect
one client only, and the errors of an MPS server that temporarily accepts no clients."""


def is_device_fault(error: BaseException) -> bool:
    """Whether `error`, or an error in its chain of causes, is a device fault."""
    return any(_FATAL.search(str(cause)) for cause in _chain(error))


def is_device_error(error: BaseException) -> bool:
    """Whether the device or the process's CUDA context may be unusable, so that the process cannot continue."""
    return is_device_fault(error) or any(
        isinstance(cause, torch.AcceleratorError) or "CUDA error" in str(cause) for cause in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
