"""Describes the machine and package versions of a measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import psutil
import pynvml

PACKAGES = ("torch", "sglang", "kvcached", "torch-memory-saver", "transformers", "safetensors")


def describe_machine() -> dict[str, Any]:
    """Processors, memory (bytes), GPUs and driver."""
    return {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        **_gpus(),
    }


def _gpus() -> dict[str, Any]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {"gpus": []}
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        gpus = [
            {"name": pynvml.nvmlDeviceGetName(handle), "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(handle).total}
            for handle in handles
        ]
        return {"gpus": gpus, "driver": pynvml.nvmlSystemGetDriverVersion()}
    finally:
        pynvml.nvmlShutdown()


def versions() -> dict[str, str]:
    """Versions of installed packages that affect the figures."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def in_words(machine: dict[str, Any], packages: dict[str, str]) -> str:
    """One sentence for a report."""
    names = [gpu["name"] for gpu in machine["gpus"]]
    gpus = f"{len(names)} x {names[0]}" if names else "no GPU"
    driver = f" (driver {machine['driver']})" if "driver" in machine else ""
    hosts = f"{machine['cpus']} CPU cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    return f"{gpus}{driver}, {hosts}; {', '.join(f'{name} {version}' for name, version in packages.items())}."
