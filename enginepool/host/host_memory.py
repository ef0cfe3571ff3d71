"""How much memory this process and its children may use, within the machine's memory and its cgroups' limits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

RESERVE = 64 * 2**20
"""Bytes below a cgroup's limit that weights must leave free: workers grow a little, and the kernel kills at the
limit."""
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_VERSIONS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""For cgroups v2 and v1: the files with limit and usage, and the statistic of reclaimable page cache in that usage."""


def machine() -> int:
    """Bytes of the machine's memory."""
    return int(psutil.virtual_memory().total)


def total() -> int:
    """Bytes that this process and its children may ever use."""
    return min([machine(), *(limit for limit, _ in _limits())])


def available() -> int:
    """Bytes that this process and its children may use in addition now."""
    left = [limit - used for limit, used in _limits()]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def room() -> int:
    """Bytes available for weights now."""
    left = [limit - used - RESERVE for limit, used in _limits()]
    return max(0, min([int(psutil.virtual_memory().available), *left]))


def most() -> int:
    """Bytes that weights could take if nothing else used memory."""
    return max(0, min([machine(), *(limit - RESERVE for limit, _ in _limits())]))


def _limits() -> Iterator[tuple[int, int]]:
    """Yields limit and usage, in bytes, of each limited cgroup this process is in."""
    for folder in _cgroups():
        for limit, used, reclaimable in _VERSIONS:
            found = _number(folder / limit)
            if found is not None and found < machine():
                yield found, (_number(folder / used) or 0) - _statistic(folder, reclaimable)


def _cgroups() -> set[Path]:
    """Folders of this process's cgroups and their parents, v2 and v1. The roots are always included, because a
    container may see its own cgroup as the root under any name."""
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
    """A value of memory.stat; 0 if missing."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such cgroup, or the limit is `max`
        return None
