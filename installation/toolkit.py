"""Assembles a CUDA toolkit in `.venv/cuda` from links to the packages that pip installed.

NVIDIA's packages contain all files of the toolkit, but not under the names a linker looks for (`libcudart.so`,
`lib64`). The driver's library is linked too: many machines have only its runtime name (`libcuda.so.1`).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sysconfig
from pathlib import Path

from installation.paths import TOOLKIT
from installation.terminal import InstallationError, say

INSTALLED = Path(sysconfig.get_path("purelib"), "nvidia", "cu13")
_FOLDERS = ("bin", "include", "nvvm")
_STUB = "int cuInit(unsigned flags) { (void)flags; return 100; }\n"


def make(toolkit: Path = TOOLKIT, installed: Path = INSTALLED) -> None:
    """Create the toolkit from scratch each time, since the driver's library may have moved.

    Raises:
        InstallationError: a package lacks an expected folder, or no stand-in for libcuda.so can be compiled.
    """
    say(f"CUDA toolkit: {toolkit}")
    shutil.rmtree(toolkit, ignore_errors=True)
    (toolkit / "lib64" / "stubs").mkdir(parents=True)
    (toolkit / "lib").symlink_to("lib64")
    for folder in _FOLDERS:
        if not (installed / folder).is_dir():
            raise InstallationError(f"{installed / folder} is missing; has the packaging of CUDA's {folder} changed?")
        (toolkit / folder).symlink_to(installed / folder)
    for library in (installed / "lib").iterdir():
        _link(library, toolkit / "lib64")
    _link_driver(toolkit / "lib64" / "stubs" / "libcuda.so")


def _link(library: Path, folder: Path) -> None:
    """Link a library under its own name and under the name without a version."""
    for name in {library.name, library.name.partition(".so")[0] + ".so" if ".so" in library.name else library.name}:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(library)


def _link_driver(link: Path) -> None:
    if driver := _driver_library():
        link.symlink_to(driver)
        return
    # A stub is enough to link against: the real library is loaded at run time, on a machine with a driver.
    command = ["cc", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-", "-o", str(link)]
    done = subprocess.run(command, input=_STUB, text=True, capture_output=True)
    if done.returncode:
        raise InstallationError(f"cannot compile a stand-in for libcuda.so: {done.stderr.strip()}")


def _driver_library() -> Path | None:
    """The driver's libcuda.so.1 as found by the dynamic loader; None without a driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libcuda.so" in line:
            return Path(line.split(maxsplit=5)[5])
    return None
