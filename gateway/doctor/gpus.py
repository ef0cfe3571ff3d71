"""The GPUs themselves."""

from __future__ import annotations

from collections.abc import Iterator

import pynvml

from config.units import format_size
from gateway.doctor.finding import Finding, failed, ok, warning
from gateway.doctor.nvml import Facts, Gpu


def check_gpus(facts: Facts) -> Iterator[Finding]:
    """A row for each, and more for those that are set up so that not everybody may use them."""
    if not facts.gpus:
        yield failed("GPUs", "none that may be seen", "look at CUDA_VISIBLE_DEVICES; in a container, at --gpus")
    for number, gpu in enumerate(facts.gpus):
        device = f"cuda:{number}"
        yield ok(device, f"{gpu.name}, {format_size(gpu.memory)}, of which {format_size(gpu.used)} are in use")
        yield from _compute_mode(device, gpu)
        yield from _mig(device, gpu)


def _compute_mode(device: str, gpu: Gpu) -> Iterator[Finding]:
    fix = "nvidia-smi --compute-mode=DEFAULT, as root"
    if gpu.compute_mode == pynvml.NVML_COMPUTEMODE_PROHIBITED:
        yield failed(device, "compute mode `prohibited`: nobody may use it", fix)
    elif gpu.compute_mode == pynvml.NVML_COMPUTEMODE_EXCLUSIVE_PROCESS:
        yield failed(device, "compute mode `exclusive process`: one process may use it, and each worker is one", fix)


def _mig(device: str, gpu: Gpu) -> Iterator[Finding]:
    if gpu.mig:
        text = "MIG is on: a worker would get one slice, and its memory is counted as the whole GPU's"
        yield warning(device, text, "nvidia-smi --multi-instance-gpu=0, as root")
