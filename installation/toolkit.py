"""A CUDA toolkit in `.venv/cuda`, made of links to what pip has installed.

NVIDIA's packages hold all of it, but without the names that a linker looks for (`libcudart.so`, `lib64`). The driver's
own library is linked to as well, since many machines have it under its name for programs only (`libcuda.so.1`).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sysconfig
from pathlib import Path

from installation.places import TOOLKIT
from installation.terminal import InstallationError, say

INSTALLED = Path(sysconfig.get_path("purelib"), "nvidia", "cu13")
_FOLDERS = ("bin", "include", "nvvm")
_STUB = "int cuInit(unsigned flags) { (void)flags; return 100; }\n"


def make(toolkit: Path = TOOLKIT, installed: Path = INSTALLED) -> None:
    """Always anew, since the driver may have moved.

    Raises:
        InstallationError: the packages do not have what is expected of them.
    """
    say(f"CUDA toolkit: {toolkit}")
    shutil.rmtree(toolkit, ignore_errors=True)
    (toolkit / "lib64" / "stubs").mkdir(parents=True)
    (toolkit / "lib").symlink_to("lib64")
    for folder in _FOLDERS:
        if not (installed / folder).is_dir():
            raise InstallationError(f"there is no {installed / folder}; is {folder} of CUDA packaged otherwise now?")
        (toolkit / folder).symlink_to(installed / folder)
    for library in (installed / "lib").iterdir():
        _link(library, toolkit / "lib64")
    _link_driver(toolkit / "lib64" / "stubs" / "libcuda.so")


def _link(library: Path, folder: Path) -> None:
    """By its own name, and by the one without a version."""
    for name in {library.name, library.name.partition(".so")[0] + ".so" if ".so" in library.name else library.name}:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(library)


def _link_driver(link: Path) -> None:
    if driver := _driver_library():
        link.symlink_to(driver)
        return
    # Enough to link with: kvcached looks for the rest when it is loaded, on a machine that has a driver.
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(link)]
    done = subprocess.run(command, input=_STUB, text=True, capture_output=True)
    if done.returncode:
        raise InstallationError(f"a stand-in for libcuda.so cannot be made: {done.stderr.strip()}")


def _driver_library() -> Path | None:
    """Where the loader found the driver's libcuda.so.1."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libcuda.so" in line:
            return Path(line.split(maxsplit=5)[5])
    return None
