"""Checks what the machine itself must provide, before anything is installed, and reports all findings at once."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from gateway.doctor.compilers import check_cxx, check_python_headers
from gateway.doctor.driver import CHECK, check_driver, driver_cuda, driver_release, nvidia_gpus_on_the_bus
from gateway.doctor.finding import Finding, failed, ok
from installation.paths import PROJECT, STAMP, VENV

PYTHONS = ((3, 11), (3, 13))
"""Oldest and newest Python version for which every pinned package has a wheel."""
GLIBC = (2, 34)
"""Required by SGLang's wheel."""
DISK = 20 * 10**9
"""Bytes: 9 GB of installed packages, their wheels (5 GB), and the same wheels in pip's cache."""
TEMPORARY = 6 * 10**9
"""Bytes of wheels during installation."""


def passes(without_gpu: bool) -> bool:
    """Print the findings; returns whether the machine is fit."""
    found = [_forgiven(it) if without_gpu and it.check == CHECK else it for it in findings()]
    for finding in found:
        _print(finding)
    lacking = [it for it in found if it.status == "failed"]
    if lacking:
        print(f"\nmake gpu: missing: {', '.join(it.check for it in lacking)}; nothing was installed")
        if [it.check for it in lacking] == [CHECK]:
            print("to install anyway, e.g. when building an image: make gpu ARGS=--without-gpu")
    return not lacking


def findings() -> Iterator[Finding]:
    yield _driver()
    yield _python()
    yield _venv()
    yield check_python_headers()
    yield check_cxx(os.environ)
    yield _libc()
    yield _git()
    yield _disk()
    yield _temporary()


def _driver() -> Finding:
    found = check_driver(driver_cuda(), driver_release(), nvidia_gpus_on_the_bus())
    return replace(found, status="failed") if found.status == "warning" else found


def _forgiven(finding: Finding) -> Finding:
    return replace(finding, status="warning") if finding.status == "failed" else finding


def _python() -> Finding:
    first, last = (f"{major}.{minor}" for major, minor in PYTHONS)
    text = f"{platform.python_version()} on {platform.machine()}"
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        fix = f"name one of {first} to {last}: make gpu PYTHON=/usr/bin/python{first}; {_others()}"
        return failed("Python", text, fix)
    if platform.machine() != "x86_64":
        return failed("Python", text, "the pinned packages are for x86-64: install by hand, see docs/installation.md")
    return ok("Python", text)


def _others() -> str:
    """Names suitable Pythons on this machine, or how to install one."""
    names = [f"python3.{minor}" for minor in range(PYTHONS[0][1], PYTHONS[1][1] + 1)]
    found = [name for name in names if shutil.which(name)]
    return f"found {', '.join(found)}" if found else f"Debian, Ubuntu: apt-get install {names[0]} {names[0]}-venv"


def _venv() -> Finding:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not missing:
        return ok("venv module", "available")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return failed("venv module", f"no module {missing[0]}", f"Debian, Ubuntu: apt-get install python{version}-venv")


def _libc() -> Finding:
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == "glibc" and numbers >= GLIBC:
        return ok("C library", f"glibc {version}")
    wanted = f"{GLIBC[0]}.{GLIBC[1]}"
    fix = f"SGLang's wheel needs glibc {wanted} or newer: Debian 12, Ubuntu 22.04, RHEL 9, or a container with one"
    return failed("C library", f"{name or 'unknown'} {version}", fix)


def _git() -> Finding:
    if path := shutil.which("git"):
        return ok("git", path)
    return Finding("git", "warning", "not found", "benchmarks record the commit; apt-get install git")


def _disk() -> Finding:
    needed, free = max(0, DISK - _size(VENV)), shutil.disk_usage(str(PROJECT)).free
    text = f"{_gb(free)} free in {PROJECT}"
    if free >= needed:
        return ok("disk", text)
    return failed("disk", f"{text}, {_gb(needed)} needed", "free some space, or move the checkout to a larger disk")


def _temporary() -> Finding:
    """pip downloads all wheels to the temporary folder first, which may be a small tmpfs."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    text = f"{_gb(free)} free in {folder}"
    if free >= TEMPORARY or STAMP.exists():
        return ok("temporary files", text)
    fix = "choose a folder on a larger disk: TMPDIR=/var/tmp make gpu"
    return failed("temporary files", f"{text}, {_gb(TEMPORARY)} needed", fix)


def _size(folder: Path) -> int:
    """Bytes in the folder; an earlier run may have left some there."""
    return sum(entry.lstat().st_size for entry in folder.rglob("*"))


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.0f} GB"


def _print(finding: Finding) -> None:
    print(f"{finding.status:8} {finding.check:16} {finding.text}", flush=True)
    if finding.fix:
        print(f"{'':8} {'':16} -> {finding.fix}", flush=True)
