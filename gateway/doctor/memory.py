"""Host memory, where the models lie that are not on a GPU."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from config.units import format_size
from gateway.doctor.finding import Finding, failed, ok, warning

CGROUPS = Path("/sys/fs/cgroup")
SHM = Path("/dev/shm")
LEAST_SHM = 16 * 2**20
"""Bytes. kvcached keeps some kB there for each worker."""


def check_memory() -> Iterator[Finding]:
    yield _host()
    yield _memfd()
    yield _shm()


def total() -> int:
    """Bytes that this process and its children may ever use."""
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _cgroup_limits())])


def available() -> int:
    """Bytes that this process and its children may still use, by the kernel and by its cgroups."""
    return min([psutil.virtual_memory().available, *(limit - used for limit, used in _cgroup_limits())])


def _host() -> Finding:
    machine = psutil.virtual_memory().total
    text = f"{format_size(available())} available of {format_size(total())}"
    if total() < machine:
        text += f" (a cgroup's limit; the machine has {format_size(machine)})"
    return ok("host memory", f"{text}; locked by one process: {_locked()}")


def _locked() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "any" if soft == resource.RLIM_INFINITY else f"at most {format_size(soft)}"


def _cgroup_limits() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each cgroup above this process that has a limit."""
    for folder in _cgroups():
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            found = _number(folder / limit)
            if found is not None and found < psutil.virtual_memory().total:
                yield found, _number(folder / used) or 0


def _cgroups() -> set[Path]:
    """Of this process and above, versions 2 and 1. A container may have its own as the root, whatever it is called."""
    roots = {"": CGROUPS, "memory": CGROUPS / "memory"}
    found = set(roots.values())
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if root := roots.get(controllers):
            folder = root / path.lstrip("/")
            found |= {it for it in (folder, *folder.parents) if it.is_relative_to(root)}
    return found


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such cgroup, or `max`
        return None


def _memfd() -> Finding:
    """Models lie in anonymous files that are sealed."""
    try:
        fd = os.memfd_create("prism-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(fd, 0, 4096)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        finally:
            os.close(fd)
    except OSError as error:
        return failed("shared memory", f"memfd_create: {error}", "models lie in memfds; does a container forbid them?")
    return ok("shared memory", "sealed memfds, bounded by host memory alone")


def _shm() -> Finding:
    if not os.access(SHM, os.W_OK):
        return failed(
            str(SHM), "cannot be written", "kvcached keeps small files there: mount a tmpfs; docker: --shm-size"
        )
    free = shutil.disk_usage(SHM).free
    if free < LEAST_SHM:
        fix = "remove what is left there, or enlarge it; docker: --shm-size=1g"
        return warning(str(SHM), f"{format_size(free)} free; {format_size(LEAST_SHM)} are wanted", fix)
    return ok(str(SHM), f"{format_size(free)} free")
