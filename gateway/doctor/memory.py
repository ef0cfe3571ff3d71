"""Host memory, where the models lie that are not on a GPU."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from config.units import format_size
from enginepool.host import host_memory
from gateway.doctor.finding import Finding, failed, ok, warning

SHM = Path("/dev/shm")
LEAST_SHM = 16 * 2**20
"""Bytes. kvcached keeps some kB there for each worker."""


def check_memory() -> Iterator[Finding]:
    yield _host()
    yield _memfd()
    yield _shm()


def _host() -> Finding:
    machine, total = host_memory.machine(), host_memory.total()
    text = f"{format_size(host_memory.available())} available of {format_size(total)}"
    if total < machine:
        text += f" (a cgroup's limit; the machine has {format_size(machine)})"
    return ok("host memory", f"{text}; locked by one process: {_locked()}")


def _locked() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return "any" if soft == resource.RLIM_INFINITY else f"at most {format_size(soft)}"


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
