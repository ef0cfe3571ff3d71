"""Errors after which this process cannot use its GPU any more, nor can any other client of its MPS daemon."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

_FATAL = re.compile(
    r"illegal memory access|illegal instruction|illegal address space|misaligned address|invalid program counter"
    r"|hardware stack error|unspecified launch failure|uncorrectable ECC|remote procedural call between the MPS server",
    re.IGNORECASE,
)
"""cudaGetErrorString of CUDA 13. Not among them: a device-side assert and an MPS client that was terminated, which both
concern one client; and those of an MPS server that takes no clients just now."""


def is_device_fault(error: BaseException) -> bool:
    """Whether this is one, or was raised because of one."""
    return any(_FATAL.search(str(cause)) for cause in _chain(error))


def is_device_error(error: BaseException) -> bool:
    """Whether the device, or the process's context on it, may be unusable: then nothing in the process can go on."""
    return is_device_fault(error) or any(
        isinstance(cause, torch.AcceleratorError) or "CUDA error" in str(cause) for cause in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
