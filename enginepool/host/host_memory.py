"""How much memory this process and its children may use: the machine's, or less by the limits of its cgroups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

RESERVE = 64 * 2**20
"""Bytes of a cgroup's limit that no weights may take: at its limit the kernel kills, and workers grow a little."""
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_VERSIONS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of cgroups 2 and 1: limit, use, and the part of that which is files read long ago, given back to whoever needs it."""


def machine() -> int:
    """Bytes of the whole machine."""
    return int(psutil.virtual_memory().total)


def total() -> int:
    """Bytes that this process and its children may ever use."""
    return min([machine(), *(limit for limit, _ in _limits())])


def available() -> int:
    """Bytes that this process and its children may still use, by the kernel and by its cgroups."""
    left = [limit - used for limit, used in _limits()]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def room() -> int:
    """Bytes that weights may take now."""
    left = [limit - used - RESERVE for limit, used in _limits()]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def most() -> int:
    """Bytes that weights may take if nothing else needs any."""
    return max(0, min([machine(), *(limit - RESERVE for limit, _ in _limits())]))


def _limits() -> Iterator[tuple[int, int]]:
    """Limit and use, in bytes, of each cgroup above this process that has a limit."""
    for folder in _cgroups():
        for limit, used, reclaimable in _VERSIONS:
            found = _number(folder / limit)
            if found is not None and found < machine():
                yield found, (_number(folder / used) or 0) - _statistic(folder, reclaimable)


def _cgroups() -> set[Path]:
    """Of this process and above, versions 2 and 1. A container may have its own as the root, whatever it is called."""
    roots = {"": CGROUPS, "memory": CGROUPS / "memory"}
    found = set(roots.values())
    for line in _membership():
        _, controllers, path = line.split(":", 2)
        root = next((roots[it] for it in controllers.split(",") if it in roots), None)
        if root is not None:
            folder = root / path.lstrip("/")
            found |= {it for it in (folder, *folder.parents) if it.is_relative_to(root)}
    return found


def _membership() -> list[str]:
    try:
        return MEMBERSHIP.read_text().splitlines()
    except OSError:  # a kernel without cgroups
        return []


def _statistic(folder: Path, name: str) -> int:
    """One of memory.stat; 0 where there is none."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such cgroup, or `max`
        return None
