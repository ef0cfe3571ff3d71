"""NVIDIA's driver, as far as it can be seen without asking it anything that could hang."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from enginepool.tested import TORCH_CUDA
from gateway.doctor.finding import Finding, failed, ok, warning

CHECK = "NVIDIA driver"

RELEASE = 580
"""The first branch of the driver with CUDA 13.0 (CUDA Toolkit release notes, table of driver versions)."""
INSTALL = (
    f"install NVIDIA's driver {RELEASE} or newer (Ubuntu: apt-get install nvidia-driver-{RELEASE}-server; Debian: "
    "nvidia-driver, of NVIDIA's own repository if Debian's is older) and reboot; start a container with --gpus all"
)
_PCI = Path("/sys/bus/pci/devices")
_RELEASE_FILE = Path("/proc/driver/nvidia/version")


def driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver knows; None if there is no driver. Does not initialise it."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def driver_release() -> str:
    """Such as `580.95.05`; empty if the kernel module is not loaded."""
    try:
        found = re.search(r"\b\d{3}\.\d+(\.\d+)?\b", _RELEASE_FILE.read_text())
    except OSError:
        return ""
    return found[0] if found else ""


def nvidia_gpus_on_the_bus() -> int:
    """PCI devices of NVIDIA's that are display or 3D controllers, with or without a driver."""
    return sum(_is_nvidia_gpu(device) for device in _PCI.glob("*"))


def check_driver(
    cuda: tuple[int, int] | None, release: str, on_the_bus: int, needed: tuple[int, int] = TORCH_CUDA
) -> Finding:
    """Whether a driver that knows `cuda` is enough for a torch of CUDA `needed`."""
    if cuda is None:
        return _no_driver(on_the_bus)
    named = f"driver {release or 'of unknown release'}, CUDA {cuda[0]}.{cuda[1]}"
    if not release:
        return failed(CHECK, f"{named}, but its kernel module is not loaded", f"modprobe nvidia; else {INSTALL}")
    if cuda[0] < needed[0]:
        return failed(CHECK, f"{named}; torch has CUDA {needed[0]}.{needed[1]}", INSTALL)
    return ok(CHECK, named)


def _no_driver(on_the_bus: int) -> Finding:
    if on_the_bus:
        return failed(CHECK, f"none (no libcuda.so.1), though there are NVIDIA GPUs: {on_the_bus}", INSTALL)
    return warning(CHECK, "none, and no NVIDIA GPU is to be seen: serving on the CPU only", INSTALL)


def _is_nvidia_gpu(device: Path) -> bool:
    try:
        return (device / "vendor").read_text().strip() == "0x10de" and (device / "class").read_text().startswith("0x03")
    except OSError:
        return False
