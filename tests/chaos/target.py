"""The gateway that faults befall: its disk and the reader of its log, which may fail, and its processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from gateway.report import Status
from tests.rig.serving import Prism

DISK = "disk"
ON_A_DISK = 'mkdir "$0" && mount -t tmpfs -o size=4m,nr_inodes=500,mode=700 tmpfs "$0" && exec "$@"'
NAMESPACE = ("unshare", "--mount")
"""What is mounted there is gone with the gateway. Only root may; in a user's own namespace /tmp belongs to nobody."""
FILLER = "chaos fills the pipe"


class Target(Prism):
    """Its files lie in `disk`, which outlives it as long as this is not closed."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._log_is_read = threading.Event()
        self._log_is_read.set()
        super().__init__(process, folder)
        self._disk = -1

    @classmethod
    def start_on_disk(cls, folder: Path, registry: dict[str, Any]) -> Target:
        """Where no file system can be mounted, on a folder, which is never full."""
        disk = folder / DISK
        gateway = {**registry["gateway"], "admin_socket": str(disk / "admin.sock")}
        target = cls.start(folder, {**registry, "gateway": gateway}, within=_within(disk))
        target._disk = os.open(f"/proc/{target.process.pid}/root{disk}", os.O_RDONLY | os.O_DIRECTORY)
        target.admin_socket = target.disk / "admin.sock"
        return target

    @property
    def disk(self) -> Path:
        return Path(f"/proc/self/fd/{self._disk}")

    @property
    def can_be_full(self) -> bool:
        return os.fstat(self._disk).st_dev != self.folder.stat().st_dev

    def close(self) -> None:
        self._log_is_read.set()
        super().close()
        if self._disk >= 0:
            os.close(self._disk)

    async def look(self) -> Status:
        """Its status; nobody else waits for it."""
        return await asyncio.to_thread(self.status)

    async def well(self) -> Status:
        """Its status once every worker is up, and is there for everybody."""
        while True:
            if is_up(status := await self.look()):
                return status
            await asyncio.sleep(0.05)

    # its processes

    @property
    def gateway(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def template(self) -> psutil.Process | None:
        """Of the gateway's children it alone leads a session."""
        return next((it for it in self.gateway.children() if _leads_session(it)), None)

    def loader(self, status: Status) -> psutil.Process | None:
        """The one child that is neither worker nor template, in a moment when no worker is being started."""
        workers = {worker.pid for worker in status.workers}
        if not status.loading or not is_up(status):
            return None
        others = [it for it in self.gateway.children() if it.pid not in workers and not _leads_session(it)]
        return others[0] if len(others) == 1 else None

    # its disk and its log

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """No byte and no file more."""
        folder = self.disk / "filler"
        folder.mkdir()
        try:
            with suppress(OSError), (folder / "bytes").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    continue
            with suppress(OSError):
                for number in range(10_000):
                    (folder / str(number)).touch()
            yield
        finally:
            for file_ in folder.iterdir():
                file_.unlink()
            folder.rmdir()

    @contextmanager
    def full_pipe(self) -> Iterator[None]:
        """Whoever reads the log stops doing so; not a byte finds room."""
        self._log_is_read.clear()
        try:
            fill(f"/proc/{self.process.pid}/fd/2")
            yield
        finally:
            self._log_is_read.set()

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._log_is_read.wait()
            if not line.startswith(FILLER):
                self.log.append(line.rstrip("\n"))
                self._lines.put(self.log[-1])
        self._lines.put(None)


def is_up(status: Status) -> bool:
    return all(it.pid is not None and it.state not in ("starting", "isolated") for it in status.workers)


def fill(pipe: str) -> None:
    descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    try:
        for length in (4096, 64, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(descriptor, (FILLER.ljust(length - 1) + "\n").encode()[-length:])
    finally:
        os.close(descriptor)


def _leads_session(process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == process.pid
    except ProcessLookupError:
        return False


def _within(disk: Path) -> tuple[str, ...]:
    works = subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode == 0
    return (*NAMESPACE, "sh", "-c", ON_A_DISK, str(disk)) if works else ()
