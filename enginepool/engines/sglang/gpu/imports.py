"""Makes it possible to import SGLang for a GPU in a process that will fork, without initialising CUDA.

A process that has initialised CUDA must not fork. Importing SGLang 0.5.17 asks torch about the GPU in two
places (`sglang.srt.platforms`, and an annotation in `distributed/parallel_state.py`); NVML answers both instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pynvml

from config.errors import EngineError
from enginepool.process import call_in_fork

_CORES_PER_MULTIPROCESSOR = 128
"""For compute capability 8.6 and later; 8.0 has 64."""


@dataclass(frozen=True, slots=True)
class _Properties:
    """The parts of `torch.cuda.get_device_properties` that are read during imports."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int


@contextmanager
def answered_by_nvml() -> Iterator[None]:
    """In this context, torch's queries about GPUs do not reach the CUDA driver.

    Raises:
        EngineError: there is no GPU.
    """
    import torch

    count, properties = call_in_fork(_describe)  # NVML leaves a thread behind, and the template is about to fork
    answers: dict[str, Callable[..., Any]] = {
        "is_available": lambda: True,
        "device_count": lambda: count,
        "current_device": lambda: 0,
        "get_device_name": lambda device=None: properties.name,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_properties": lambda device=None: properties,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
        "is_bf16_supported": lambda *args, **kwargs: properties.major >= 8,
    }
    cuda: Any = torch.cuda
    originals = {name: getattr(cuda, name) for name in answers}
    get_device_module = torch.get_device_module
    torch.get_device_module = lambda device=None: torch.cuda  # type: ignore[assignment]
    try:
        for name, answer in answers.items():
            setattr(cuda, name, answer)
        yield
    finally:
        for name, original in originals.items():
            setattr(cuda, name, original)
        torch.get_device_module = get_device_module


def _describe() -> tuple[int, _Properties]:
    """The number of GPUs, and the properties of the first."""
    try:
        pynvml.nvmlInit()
        try:
            count = pynvml.nvmlDeviceGetCount()
            if count == 0:
                raise EngineError("the engine sglang needs a GPU, but NVML finds none")
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            cores = _CORES_PER_MULTIPROCESSOR // 2 if (major, minor) == (8, 0) else _CORES_PER_MULTIPROCESSOR
            properties = _Properties(
                name=pynvml.nvmlDeviceGetName(handle),
                major=major,
                minor=minor,
                total_memory=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
                multi_processor_count=pynvml.nvmlDeviceGetNumGpuCores(handle) // cores,
            )
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise EngineError(f"the engine sglang needs a GPU, but NVML reports: {error}") from error
    return count, properties
