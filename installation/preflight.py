"""What the machine itself must have, looked at before anything is done, and told all at once."""

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
from installation.places import PROJECT, STAMP, VENV

PYTHONS = ((3, 11), (3, 13))
"""First and last that every pin has a wheel for."""
GLIBC = (2, 34)
"""Of SGLang's wheel."""
DISK = 20 * 10**9
"""Bytes: the packages, 9 GB, as wheels 5 GB more, and again in pip's cache."""
TEMPORARY = 6 * 10**9
"""Bytes of wheels while they are installed."""


def passes(without_gpu: bool) -> bool:
    """Print what was found; whether that is enough."""
    found = [_forgiven(it) if without_gpu and it.check == CHECK else it for it in findings()]
    for finding in found:
        _print(finding)
    lacking = [it for it in found if it.status == "failed"]
    if lacking:
        print(f"\nmake gpu: lacking: {', '.join(it.check for it in lacking)}; nothing was installed")
        if [it.check for it in lacking] == [CHECK]:
            print("to install nevertheless, say into an image: make gpu ARGS=--without-gpu")
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
        return failed("Python", text, "the pinned packages are for x86-64: follow docs/installation.md by hand")
    return ok("Python", text)


def _others() -> str:
    """Pythons that would do."""
    names = [f"python3.{minor}" for minor in range(PYTHONS[0][1], PYTHONS[1][1] + 1)]
    found = [name for name in names if shutil.which(name)]
    return f"there is {', '.join(found)}" if found else f"Debian, Ubuntu: apt-get install {names[0]} {names[0]}-venv"


def _venv() -> Finding:
    missing = [name for name in ("venv", "ensurepip") if importlib.util.find_spec(name) is None]
    if not missing:
        return ok("venv module", "there")
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return failed("venv module", f"there is no {missing[0]}", f"Debian, Ubuntu: apt-get install python{version}-venv")


def _libc() -> Finding:
    name, version = platform.libc_ver()
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if name == "glibc" and numbers >= GLIBC:
        return ok("C library", f"glibc {version}")
    wanted = f"{GLIBC[0]}.{GLIBC[1]}"
    fix = f"SGLang's wheel takes glibc {wanted} or newer: Debian 12, Ubuntu 22.04, RHEL 9, or a container of those"
    return failed("C library", f"{name or 'unknown'} {version}", fix)


def _git() -> Finding:
    if path := shutil.which("git"):
        return ok("git", path)
    return Finding("git", "warning", "there is none", "benchmarks note the commit; apt-get install git")


def _disk() -> Finding:
    needed, free = max(0, DISK - _size(VENV)), shutil.disk_usage(str(PROJECT)).free
    text = f"{_gb(free)} free in {PROJECT}"
    if free >= needed:
        return ok("disk", text)
    return failed("disk", f"{text}, {_gb(needed)} are needed", "free some, or put the checkout on a larger disk")


def _temporary() -> Finding:
    """pip puts all wheels there first. It may be memory."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    text = f"{_gb(free)} free in {folder}"
    if free >= TEMPORARY or STAMP.exists():
        return ok("temporary files", text)
    fix = "name a folder on a larger disk: TMPDIR=/var/tmp make gpu"
    return failed("temporary files", f"{text}, {_gb(TEMPORARY)} are needed", fix)


def _size(folder: Path) -> int:
    """Bytes in it, as an earlier run may have left them."""
    return sum(entry.lstat().st_size for entry in folder.rglob("*"))


def _gb(nbytes: int) -> str:
    return f"{nbytes / 1e9:.0f} GB"


def _print(finding: Finding) -> None:
    print(f"{finding.status:8} {finding.check:16} {finding.text}", flush=True)
    if finding.fix:
        print(f"{'':8} {'':16} -> {finding.fix}", flush=True)
