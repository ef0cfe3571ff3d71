"""What a gateway may not gather while it serves, nor leave behind when it has ended."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos.target import Target

MARK = "PRISM_CHAOS"
"""Environment variable by which processes of a run are known, whoever their parent is by now."""
PATIENCE = 10.0
"""Seconds for what is about to end."""
GROWTH = 32 * 2**20
"""Bytes of the gateway's own memory, which has caches and a heap that is not given back at once."""


@dataclass(frozen=True)
class Held:
    """By a gateway that serves nobody."""

    files: Counter[str]
    """Its file descriptors by kind, without those of weights, of which each model in host memory has one."""
    processes: int
    memory: int
    """Bytes."""


def held_by(target: Target) -> Held:
    gateway = target.gateway
    files: Counter[str] = Counter()
    for descriptor in Path(f"/proc/{gateway.pid}/fd").iterdir():
        try:
            files[_kind_of(os.readlink(descriptor))] += 1
        except FileNotFoundError:
            continue
    del files["weights"]
    return Held(files, len(gateway.children(recursive=True)), gateway.memory_info().rss)


def gathered(target: Target, before: Held) -> str:
    """What it has more of than before; empty if there is nothing. Ends of connections get some time."""
    deadline = time.monotonic() + PATIENCE
    while (more := _more(before, held_by(target))) and time.monotonic() < deadline:
        time.sleep(0.05)
    return more


def _more(before: Held, now: Held) -> str:
    if more := now.files - before.files:
        return f"file descriptors: {dict(more)}"
    if now.processes > before.processes:
        return f"{now.processes} processes, before there were {before.processes}"
    if now.memory > before.memory + GROWTH:
        return f"{now.memory >> 20} MiB of memory, before there were {before.memory >> 20}"
    return ""


def _kind_of(link: str) -> str:
    if "memfd:prism-" in link:
        return "weights"
    return link.partition(":")[0] if not link.startswith("/") else link


def left_behind(mark: str, disk: Path, shared_memory: frozenset[str], *, sockets: bool) -> str:
    """By a gateway that has ended; empty if there is nothing."""
    _, alive = psutil.wait_procs(_processes(mark), timeout=PATIENCE)
    if alive:
        return f"processes: {[(it.pid, it.cmdline()) for it in alive]}"
    if more := shared_memory_now() - shared_memory:
        return f"shared memory: {sorted(more)}"
    files = [path.name for path in disk.rglob("*") if path.is_socket() or path.name.endswith(".lock")]
    return f"sockets or locks: {files}" if sockets and files else ""


def shared_memory_now() -> frozenset[str]:
    return frozenset(os.listdir("/dev/shm"))


def _processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found.append(process)
        except psutil.Error:
            continue
    return found
