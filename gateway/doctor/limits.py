"""What the kernel allows."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator

from gateway.doctor.finding import Finding, failed, ok, warning

OPEN_FILES = 4096
"""That are wanted at least: the gateway has one for each client, two more while it asks a worker for something."""


def check_limits(clients: int = 0) -> Iterator[Finding]:
    """With `clients` that may wait at a time, by the registry."""
    yield _open_files(max(OPEN_FILES, clients))
    yield _pidfd()


def _open_files(wanted: int) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = f"{_count(soft)} may be open (at most {_count(hard)})"
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ok("open files", text)
    fix = f"ulimit -n {wanted}; systemd: LimitNOFILE={wanted}; docker: --ulimit nofile={wanted}"
    return warning("open files", f"{text}; {wanted} are wanted, or clients cannot connect", fix)


def _count(limit: int) -> str:
    return "any number" if limit == resource.RLIM_INFINITY else str(limit)


def _pidfd() -> Finding:
    """Workers' ends are noticed by these."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        fix = "Prism needs Linux 5.4 or newer, and a container that lets pidfd_open through"
        return failed("kernel", f"Linux {platform.release()}, pidfd_open: {error}", fix)
    return ok("kernel", f"Linux {platform.release()}")
