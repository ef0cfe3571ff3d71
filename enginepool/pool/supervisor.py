"""The gateway's side of the pool: starts the template and the workers, watches them, replaces the dead."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from config.errors import ChannelError, PoolError
from config.registry import PoolConfig
from enginepool import process
from enginepool.channel import Channel
from enginepool.messages import Exit, FromWorker, Message, MpsClient, Ping, WorkerReady
from enginepool.mps import control
from enginepool.mps.daemon import MpsDaemons
from enginepool.pool.forks import Child, ForkServer

log = logging.getLogger("prism.pool")

STOP_TIMEOUT = 5.0
"""Seconds that workers get to end by themselves."""
START_TIMEOUT = 120.0
"""Seconds from fork to ready; a worker that takes longer is replaced."""
STABLE = 3.0
"""Seconds after which a worker's death counts as an accident. The first replacement comes at once in any case."""
RESTART_DELAY = 0.5
"""Seconds before the second replacement in a row of workers that died young; doubles with each, up to the maximum."""
RESTART_DELAY_MAX = 30.0


class PoolEvents(Protocol):
    """What the supervisor tells the gateway."""

    def worker_message(self, worker: int, message: FromWorker) -> None: ...

    def worker_dead(self, worker: int, reason: str) -> None:
        """It is gone and will be replaced under the same number."""
        ...

    def device_fault(self, device: str, workers: Sequence[int], reason: str, suspected: bool) -> None:
        """All of a device's workers that share it by MPS are gone together, and will be replaced. `suspected` if what
        one of them did may be the cause."""
        ...


class WorkerHandle:
    """One handle of the pool: its number stays, its process may be replaced."""

    def __init__(self, number: int, device: str) -> None:
        self.number = number
        self.device = device
        self.child: Child[FromWorker] | None = None
        self.ready = False
        self.isolated = False
        """Whether its process is to share its GPU in turns, even where there is MPS."""
        self.mps: MpsClient | None = None
        """How its process computes beside others; None: in turns with them."""
        self.leaving: Child[FromWorker] | None = None
        """The process before, of which something may not have ended yet."""
        self.ending: Child[FromWorker] | None = None
        """The process that is about to be killed."""
        self.unanswered = 0
        self.restarts = 0
        self.recycled: Child[FromWorker] | None = None
        """The process that was told to make room for a new one."""

    @property
    def name(self) -> str:
        return f"worker-{self.number}"

    @property
    def pid(self) -> int | None:
        return self.child.pid if self.child is not None else None


class Supervisor:
    """Tells of nothing before `start`, which names who is told."""

    def __init__(self, config: PoolConfig, run_dir: Path) -> None:
        self._config = config
        self._events: PoolEvents
        self.forks = ForkServer(config, run_dir)
        self._mps = MpsDaemons(config, run_dir, self._daemon_ended)
        handles = [device for device in config.devices for _ in range(config.workers_per_device)]
        self.workers = [WorkerHandle(number, device) for number, device in enumerate(handles)]
        self._failed: dict[str, list[Child[FromWorker]]] = {}
        """The clients that each device had when it failed last."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, events: PoolEvents) -> None:
        """Start the template and begin to start every worker; they report by WorkerReady.

        Raises:
            PoolError: the template does not start, or MPS cannot be had where the registry insists on it.
        """
        self._events = events
        process.set_subreaper(True)
        await self._mps.start()
        await self.forks.start()
        for worker in self.workers:
            self._spawn_task(self._keep_running(worker))
        self._spawn_task(self._heartbeat())

    async def stop(self) -> None:
        """End every process of the pool; those that do not end in time are killed."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        children = [worker.child for worker in self.workers if worker.child is not None]
        for child in children:
            _send_quietly(child.channel, Exit())
        exits = [child.exited for child in children]
        if exits:
            await asyncio.wait(exits, timeout=STOP_TIMEOUT)
        await asyncio.gather(*map(_leave_gpu, self.workers))
        for child in children:
            await child.kill()
        await self.forks.stop()
        await self._mps.stop()

    def send(self, worker: int, message: Message) -> None:
        """Give a worker a message. A dead one is no error here: its death is told by `worker_dead`."""
        child = self.workers[worker].child
        if child is not None:
            _send_quietly(child.channel, message)

    def kill(self, worker: int, reason: str) -> None:
        """End a worker's process now; it is replaced."""
        handle = self.workers[worker]
        if handle.child is not None:
            self._end(handle, handle.child, reason)

    def recycle(self, worker: int, *, isolated: bool = False) -> None:
        """Let a worker's process end, and start another in its handle; `worker_dead` is not told of it."""
        handle = self.workers[worker]
        handle.isolated = isolated
        child = handle.recycled = handle.child
        if child is not None:
            handle.ready = False
            _send_quietly(child.channel, Exit())
            asyncio.get_running_loop().call_later(STOP_TIMEOUT, self._end, handle, child)

    def _end(self, handle: WorkerHandle, child: Child[FromWorker], reason: str = "") -> None:
        """Kill a process of a handle, at once or after a moment."""
        if handle.mps is None:
            child.end(reason)
        elif handle.ending is not child:
            handle.ending = child
            self._spawn_task(_end_client(handle, child, reason))

    def _daemon_ended(self, device: str, reason: str) -> None:
        self._device_failed(device, reason, self._clients(device), suspected=False)

    def _clients(self, device: str) -> list[WorkerHandle]:
        """Places whose processes share the device by MPS, and are not about to make room for others."""
        here = (handle for handle in self.workers if handle.device == device and handle.mps is not None)
        return [handle for handle in here if handle.child is not None and handle.child is not handle.recycled]

    def _device_failed(self, device: str, reason: str, handles: Sequence[WorkerHandle], *, suspected: bool) -> None:
        """Have all of them replaced at once: nobody can use the device again before all its clients have ended."""
        self._failed[device] = [child for handle in handles if (child := handle.child or handle.leaving) is not None]
        for handle in handles:
            handle.restarts += 1
            if handle.child is not None:
                handle.ready, handle.recycled = False, handle.child
                handle.child.end(reason)
        if handles:
            log.warning("%s: %s; all of its %d workers are replaced", device, reason, len(handles))
            self._events.device_fault(device, [handle.number for handle in handles], reason, suspected)

    # one handle of the pool

    async def _keep_running(self, handle: WorkerHandle) -> None:
        """Root of the task that keeps one handle filled."""
        early_deaths = 0
        while True:
            began = time.monotonic()
            try:
                reason = await self._run_worker(handle)
            except (PoolError, ChannelError) as error:
                reason = str(error)
            if handle.child is not None and handle.child is handle.recycled:
                handle.child = handle.recycled = None
                log.info("%s has made room for a new process", handle.name)
                continue
            early_deaths = 0 if time.monotonic() - began >= STABLE else early_deaths + 1
            delay = _restart_delay(early_deaths)
            self._bury(handle, reason, delay)
            await asyncio.sleep(delay)

    async def _run_worker(self, handle: WorkerHandle) -> str:
        """Start one process and wait for its end; returns why it ended."""
        handle.unanswered = 0
        handle.ready = False
        isolated = handle.isolated
        if not isolated:
            await _until_gone(self._failed.get(handle.device, ()))
        handle.mps = None if isolated else await self._mps.client(handle.device)
        child: Child[FromWorker] = await self.forks.fork("worker", handle.name, handle.device, FromWorker, handle.mps)
        handle.child = child
        if handle.isolated is not isolated:  # told so while this one was on its way
            handle.recycled = child
            child.end()
        asyncio.get_running_loop().call_later(START_TIMEOUT, self._check_started, handle, child)
        if handle.leaving is not None:  # what it has of the device's memory is not free before
            await asyncio.wait((handle.leaving.gone, child.exited), return_when=asyncio.FIRST_COMPLETED)
        child.receive(lambda message: self._on_message(handle, message))
        reason = await asyncio.shield(child.exited)
        handle.leaving = child
        return reason

    def _check_started(self, handle: WorkerHandle, child: Child[FromWorker]) -> None:
        if handle.child is child and not handle.ready:
            self.kill(handle.number, f"not ready after {START_TIMEOUT:g} s")

    def _bury(self, handle: WorkerHandle, reason: str, delay: float) -> None:
        handle.child = None
        log.warning("%s is gone: %s; starting another%s", handle.name, reason, f" in {delay:g} s" if delay else "")
        if reason == process.DEVICE_FAULT and handle.mps is not None:
            handles = sorted([handle, *self._clients(handle.device)], key=lambda handle: handle.number)
            self._device_failed(handle.device, reason, handles, suspected=True)
        else:
            handle.restarts += 1
            self._events.worker_dead(handle.number, reason)

    def _on_message(self, handle: WorkerHandle, message: FromWorker) -> None:
        if handle.recycled is not None and handle.child is handle.recycled:
            return  # What it still says is about work that others have by now.
        handle.unanswered = 0
        if isinstance(message, WorkerReady):
            handle.ready = True
        self._events.worker_message(handle.number, message)

    # heartbeat

    async def _heartbeat(self) -> None:
        """Root of the task that pings. Counts unanswered pings, not time: a pause of the gateway kills nobody."""
        serial = 0
        while True:
            await asyncio.sleep(self._config.heartbeat)
            serial += 1
            for handle in self.workers:
                if handle.ready and handle.child is not None:
                    self._ping(handle, handle.child, serial)

    def _ping(self, handle: WorkerHandle, child: Child[FromWorker], serial: int) -> None:
        if handle.unanswered * self._config.heartbeat >= self._config.silence:
            self.kill(handle.number, f"silent for {self._config.silence:g} s")
            return
        handle.unanswered += 1
        _send_quietly(child.channel, Ping(serial))

    def _spawn_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _until_gone(children: Sequence[Child[FromWorker]]) -> None:
    """An MPS server that has failed takes no client before all that it had have ended."""
    if left := [child.gone for child in children if not child.gone.done()]:
        await asyncio.wait(left, timeout=START_TIMEOUT)


async def _end_client(handle: WorkerHandle, child: Child[FromWorker], reason: str) -> None:
    await _leave_gpu(handle)
    child.end(reason)


async def _leave_gpu(handle: WorkerHandle) -> None:
    """Before its process is killed."""
    if handle.mps is not None and handle.child is not None and not handle.child.exited.done():
        await control.terminate(handle.mps.pipes, handle.child.pid)


def _restart_delay(early_deaths: int) -> float:
    """Seconds to wait after this many early deaths in a row."""
    if early_deaths < 2:
        return 0.0
    return min(RESTART_DELAY_MAX, RESTART_DELAY * 2.0 ** min(early_deaths - 2, 10))


def _send_quietly(channel: Channel[FromWorker], message: Message) -> None:
    with contextlib.suppress(ChannelError):
        channel.send(message)
