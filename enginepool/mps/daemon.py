"""The gateway's own MPS daemons: one per GPU, so that a fault on one GPU does not affect others.

Each runs under a `keeper` process, which ends it together with the gateway. Pipes and logs are in the gateway's run
folder.
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
"""Seconds from a daemon's start until its server accepts clients; it takes longest on a GPU not yet initialised."""
STOP_TIMEOUT = 5.0
"""Seconds for a keeper to end all processes of its daemon."""
ASK_INTERVAL = 0.05
"""Seconds between polls of a starting daemon."""
LOG_INTERVAL = 0.5
"""Seconds between reads of a server's log."""
LONGEST_PIPE = 107 - len("/control_privileged")
"""Maximum bytes of a pipe folder's path, given the kernel's limit of 107 for a socket's path."""
_TROUBLE = re.compile(r"error|fail|fault|exception|unable|cannot|could not", re.IGNORECASE)


class MpsDaemon:
    """The MPS daemon of one GPU. `start` may be called again after it has ended."""

    def __init__(self, device: str, gpu: str, folder: Path) -> None:
        self.device = device
        self._folder = folder
        self._logs = folder / "logs"
        self.client = MpsClient(str(folder), str(self._logs), gpu)
        self._keeper: asyncio.subprocess.Process | None = None
        self._said: deque[str] = deque(maxlen=3)
        self._relays: list[asyncio.Task[None]] = []
        self._read = 0
        """Bytes read of the server's log."""
        self._ready = False

    async def start(self) -> None:
        """Start the daemon and a server that accepts clients.

        Raises:
            PoolError: either does not start; the message quotes NVIDIA's programs.
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
        log.info("the workers of %s compute concurrently: its MPS daemon is running", self.device)

    async def ended(self) -> None:
        """Wait until all its processes have ended."""
        assert self._keeper is not None
        await self._keeper.wait()

    async def stop(self) -> None:
        """End the daemon and its server, by force if necessary."""
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
            with contextlib.suppress(PoolError):  # the daemon may not be listening yet
                if asked and await servers(pipes):
                    self._ready = True
                    return
                if not asked:
                    await ask(pipes, command)
                    asked = True
            await asyncio.sleep(ASK_INTERVAL)
        raise PoolError("the daemon exited")

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
    """The MPS daemons of a pool; none if its workers compute in turns.

    `on_fault(device, reason)` is called when a daemon has ended, which makes its clients unusable.
    """

    def __init__(self, pool: PoolConfig, run_dir: Path, on_fault: Callable[[str, str], None]) -> None:
        self._pool = pool
        self._run_dir = run_dir
        self._on_fault = on_fault
        self._daemons: dict[str, MpsDaemon] = {}
        self._restarts: dict[str, asyncio.Event] = {}
        """By device: set while its daemon is usable or has been given up, clear while it is being replaced."""
        self._watching: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the daemons, if the registry asks for MPS.

        Raises:
            PoolError: the registry demands MPS and it is not available.
        """
        if not _is_wanted(self._pool):
            return
        try:
            await self._start_all()
        except PoolError as error:
            await self.stop()
            if self._pool.mps == "on":
                raise
            log.warning("MPS is not available, so the workers of a GPU compute in turns: %s", error)

    async def client(self, device: str) -> MpsClient | None:
        """How a new process becomes a client of the device's daemon; waits while that is restarting. None without a
        daemon."""
        if device in self._restarts:
            await self._restarts[device].wait()
        daemon = self._daemons.get(device)
        return daemon.client if daemon is not None else None

    async def stop(self) -> None:
        """End all daemons. To be called when no client is left."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        await asyncio.gather(*(daemon.stop() for daemon in self._daemons.values()))
        self._daemons.clear()

    async def _start_all(self) -> None:
        if shutil.which(CONTROL) is None:
            raise PoolError(f"{CONTROL}, a part of NVIDIA's driver, was not found")
        for index, device in enumerate(filter(is_gpu, self._pool.devices)):
            # Short, as it holds sockets, and with the process id, so that it is not a dead gateway's.
            folder = self._run_dir / f"m{index}.{os.getpid()}"
            if len(os.fsencode(folder)) > LONGEST_PIPE:
                raise PoolError(f"the path {folder} is too long for MPS; choose a shorter gateway.admin_socket")
            self._daemons[device] = MpsDaemon(device, self._name(device), folder)
        await _all_or_none([daemon.start() for daemon in self._daemons.values()])
        for daemon in self._daemons.values():
            self._restarts[daemon.device] = asyncio.Event()
            self._restarts[daemon.device].set()
            self._watching.append(asyncio.create_task(self._watch(daemon)))

    def _name(self, device: str) -> str:
        """The GPU's name for CUDA. An engine that uses no GPUs may name some that do not exist and so have no UUID."""
        return (uuid_of if facts_of(self._pool).uses_gpus else visible_name)(device, os.environ)

    async def _watch(self, daemon: MpsDaemon) -> None:
        """Root of the task that restarts a daemon which has ended; if that fails, its GPU's workers do without MPS."""
        device = daemon.device
        while True:
            await daemon.ended()
            self._restarts[device].clear()
            await daemon.stop()
            log.error("the MPS daemon of %s has ended; starting a new one", device)
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
    """Whether the registry asks for MPS; it may still be unavailable."""
    if pool.mps != "auto":
        return pool.mps == "on"
    if not any(is_used_gpu(pool, device) for device in pool.devices):
        return False
    if pool.workers_per_device == 1:
        log.info("MPS is not used, as there is only one worker per GPU")
    return pool.workers_per_device > 1


async def _all_or_none(starts: list[object]) -> None:
    """Wait for all awaitables, even if one fails, then raise the first error."""
    for outcome in await asyncio.gather(*starts, return_exceptions=True):  # type: ignore[call-overload]
        if isinstance(outcome, BaseException):
            raise outcome


def end_stale(folder: Path) -> None:
    """Kill MPS processes left by a dead gateway: those whose pipes lie in or below `folder`."""
    for found in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if found.name().startswith("nvidia-cuda-mps") and _lies_in(found.environ().get(PIPES, ""), folder):
                found.kill()


def _lies_in(pipes: str, folder: Path) -> bool:
    return bool(pipes) and Path(pipes).is_relative_to(folder)
