"""The gateway's own MPS daemons: one for each GPU, so that what happens on one GPU stays there.

Each runs below a keeper (`mps_keeper`), which ends it with the gateway. Its pipes and logs lie in the gateway's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

from config.devices import is_gpu, is_used_gpu
from config.engines import facts_of
from config.errors import PoolError
from config.gpus import VISIBLE, uuid_of, visible_name
from config.registry import PoolConfig
from enginepool.messages import MpsClient
from enginepool.mps.control import CONTROL, LOGS, PIPES, ask, control_environment, servers

log = logging.getLogger("prism.mps")

START_TIMEOUT = 30.0
"""Seconds from a daemon's start until its server takes clients, with a GPU that nobody has woken yet at worst."""
STOP_TIMEOUT = 5.0
"""Seconds that a keeper gets to end all of its daemon's processes."""
ASK_INTERVAL = 0.05
"""Seconds between two questions to a daemon that starts."""
LOG_INTERVAL = 0.5
"""Seconds between two looks into a server's log."""
LONGEST_PIPE = 107 - len("/control_privileged")
"""Bytes of a pipe folder's path: the kernel takes 107 of a socket's."""
_TROUBLE = re.compile(r"error|fail|fault|exception|unable|cannot|could not", re.IGNORECASE)


class MpsDaemon:
    """Of one GPU, which `client` names. `start` may be called again once it has ended."""

    def __init__(self, device: str, gpu: str, folder: Path) -> None:
        self.device = device
        self._folder = folder
        self._logs = folder / "logs"
        self.client = MpsClient(str(folder), str(self._logs), gpu)
        self._keeper: asyncio.subprocess.Process | None = None
        self._said: deque[str] = deque(maxlen=3)
        self._relays: list[asyncio.Task[None]] = []
        self._read = 0
        """Bytes of the server's log."""
        self._ready = False

    async def start(self) -> None:
        """Start it, and a server that is ready for clients.

        Raises:
            PoolError: there is none, with what NVIDIA's programs had to say.
        """
        shutil.rmtree(self._folder, ignore_errors=True)
        try:
            self._logs.mkdir(mode=0o700, parents=True)
            self._keeper = await self._start_keeper()
        except OSError as error:
            raise PoolError(f"the MPS daemon of {self.device} cannot be started: {error}") from error
        loop = asyncio.get_running_loop()
        self._relays = [loop.create_task(self._relay()), loop.create_task(self._relay_server())]
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._become_ready(self._keeper)
        except (PoolError, TimeoutError) as error:
            raise PoolError(f"the MPS daemon of {self.device} does not start: {self._describe(error)}") from error
        finally:
            if not self._ready:
                await self.stop()
        log.info("the workers of %s compute at the same time: its MPS daemon runs", self.device)

    async def ended(self) -> None:
        """Wait until nothing of it runs any more."""
        assert self._keeper is not None
        await self._keeper.wait()

    async def stop(self) -> None:
        """End it with its server, whatever they do."""
        self._ready = False
        if (keeper := self._keeper) is None:
            return
        assert keeper.stdin is not None
        keeper.stdin.close()
        try:
            await asyncio.wait_for(keeper.wait(), STOP_TIMEOUT)
        except TimeoutError:
            end_stale(self._folder)
            keeper.kill()
            await keeper.wait()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        self._relays = []
        self._read_server_log()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _start_keeper(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "enginepool.mps.keeper",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=control_environment(self.client.pipes) | {LOGS: self.client.logs, VISIBLE: self.client.gpu},
        )

    async def _become_ready(self, keeper: asyncio.subprocess.Process) -> None:
        pipes, command = self.client.pipes, f"start_server -uid {os.getuid()}"
        asked = False
        while keeper.returncode is None:
            with contextlib.suppress(PoolError):  # it may not listen yet
                if asked and await servers(pipes):
                    self._ready = True
                    return
                if not asked:
                    await ask(pipes, command)
                    asked = True
            await asyncio.sleep(ASK_INTERVAL)
        raise PoolError("it ended")

    def _describe(self, error: Exception) -> str:
        what = str(error) or f"not ready after {START_TIMEOUT:g} s"
        return f"{what} ({' / '.join(self._said)})" if self._said else what

    async def _relay(self) -> None:
        """Root of the task that logs what the daemon prints."""
        assert self._keeper is not None
        assert self._keeper.stdout is not None
        async for line in self._keeper.stdout:
            self._log(line.decode(errors="replace"))

    async def _relay_server(self) -> None:
        """Root of the task that logs what the server writes into its own file."""
        self._read = 0
        while True:
            self._read_server_log()
            await asyncio.sleep(LOG_INTERVAL)

    def _read_server_log(self) -> None:
        with contextlib.suppress(OSError), (self._logs / "server.log").open("rb") as file:
            file.seek(self._read)
            for line in file:
                self._log(line.decode(errors="replace"))
            self._read = file.tell()

    def _log(self, line: str) -> None:
        if text := line.strip():
            self._said.append(text)
            log.log(logging.WARNING if _TROUBLE.search(text) else logging.DEBUG, "%s: %s", self.device, text)


class MpsDaemons:
    """The MPS daemons of a pool; none, where its workers compute in turns.

    `on_fault` is told of a daemon that has ended with its clients, which are of no use any more.
    """

    def __init__(self, pool: PoolConfig, run_dir: Path, on_fault: Callable[[str, str], None]) -> None:
        self._pool = pool
        self._run_dir = run_dir
        self._on_fault = on_fault
        self._daemons: dict[str, MpsDaemon] = {}
        self._restarts: dict[str, asyncio.Event] = {}
        """Set while a device's daemon can be used, or has been given up."""
        self._watching: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """
        Raises:
            PoolError: the registry insists on MPS, and it cannot be had.
        """
        if not _is_wanted(self._pool):
            return
        try:
            await self._start_all()
        except PoolError as error:
            await self.stop()
            if self._pool.mps == "on":
                raise
            log.warning("workers of a GPU compute in turns, without MPS: %s", error)

    async def client(self, device: str) -> MpsClient | None:
        """How a new process can use the device's daemon, once that runs; None where there is none."""
        if device in self._restarts:
            await self._restarts[device].wait()
        daemon = self._daemons.get(device)
        return daemon.client if daemon is not None else None

    async def stop(self) -> None:
        """To be called once no client is left."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(daemon.stop() for daemon in self._daemons.values()))
        self._daemons.clear()

    async def _start_all(self) -> None:
        if shutil.which(CONTROL) is None:
            raise PoolError(f"there is no {CONTROL}, which comes with NVIDIA's driver")
        for index, device in enumerate(filter(is_gpu, self._pool.devices)):
            folder = self._run_dir / f"m{index}.{os.getpid()}"  # short, for sockets, and no dead gateway's
            if len(os.fsencode(folder)) > LONGEST_PIPE:
                raise PoolError(f"the path {folder} is too long for MPS; choose a shorter gateway.admin_socket")
            self._daemons[device] = MpsDaemon(device, self._name(device), folder)
        await _all_or_none([daemon.start() for daemon in self._daemons.values()])
        for daemon in self._daemons.values():
            self._restarts[daemon.device] = asyncio.Event()
            self._restarts[daemon.device].set()
            self._watching.append(asyncio.create_task(self._watch(daemon)))

    def _name(self, device: str) -> str:
        """An engine that uses no GPUs may name some that are not there."""
        return (uuid_of if facts_of(self._pool).uses_gpus else visible_name)(device, os.environ)

    async def _watch(self, daemon: MpsDaemon) -> None:
        """Root of the task that replaces a daemon which has ended; if it cannot be, its GPU's workers do without."""
        device = daemon.device
        while True:
            await daemon.ended()
            self._restarts[device].clear()
            await daemon.stop()
            log.error("the MPS daemon of %s has ended; starting another", device)
            self._on_fault(device, "its MPS daemon ended")
            try:
                await daemon.start()
            except PoolError as error:
                log.error("%s; from now on the workers of %s compute in turns", error, device)
                del self._daemons[device]
                return
            finally:
                self._restarts[device].set()


def _is_wanted(pool: PoolConfig) -> bool:
    """By what the registry says; whether it can be had is another matter."""
    if pool.mps != "auto":
        return pool.mps == "on"
    if not any(is_used_gpu(pool, device) for device in pool.devices):
        return False
    if pool.workers_per_device == 1:
        log.info("MPS is not used: one worker per GPU has nobody to share it with")
    return pool.workers_per_device > 1


async def _all_or_none(starts: list[object]) -> None:
    """Wait for all, even if one fails."""
    for outcome in await asyncio.gather(*starts, return_exceptions=True):  # type: ignore[call-overload]
        if isinstance(outcome, BaseException):
            raise outcome


def end_stale(folder: Path) -> None:
    """Kill NVIDIA's processes whose pipes lie in `folder` or below it: their gateway is gone."""
    for found in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if found.name().startswith("nvidia-cuda-mps") and _lies_in(found.environ().get(PIPES, ""), folder):
                found.kill()


def _lies_in(pipes: str, folder: Path) -> bool:
    return bool(pipes) and Path(pipes).is_relative_to(folder)
