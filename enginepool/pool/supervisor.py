"""The gateway's side of the pool: starts the template and the workers, monitors them and replaces dead ones."""

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
"""Seconds for workers to end by themselves."""
START_TIMEOUT = 120.0
"""Seconds from fork to ready; a worker that takes longer is replaced."""
STABLE = 3.0
"""Seconds a worker must live for its death not to count as early. The first early death has no restart delay."""
RESTART_DELAY = 0.5
"""Seconds before a worker is restarted after its second early death in a row; doubles with each further one."""
RESTART_DELAY_MAX = 30.0
"""Upper bound of the restart delay, in seconds."""


class PoolEvents(Protocol):
    """The supervisor's callbacks into the gateway."""

    def worker_message(self, worker: int, message: FromWorker) -> None: ...

    def worker_dead(self, worker: int, reason: str) -> None:
        """The worker's process is gone; a new one will get the same number."""
        ...

    def device_fault(self, device: str, workers: Sequence[int], reason: str, suspected: bool) -> None:
        """All workers that share the device through MPS are gone at once and will be replaced. `suspected` says whether
        the work of one of them may be the cause."""
        ...


class WorkerHandle:
    """A worker of the pool. Its number stays the same when its process is replaced."""

    def __init__(self, number: int, device: str) -> None:
        self.number = number
        self.device = device
        self.child: Child[FromWorker] | None = None
        self.ready = False
        self.isolated = False
        """Whether its process must not use MPS, so that a fault cannot affect other workers."""
        self.mps: MpsClient | None = None
        """The MPS daemon that its process uses; None without MPS."""
        self.leaving: Child[FromWorker] | None = None
        """The previous process, parts of which may not have ended yet."""
        self.ending: Child[FromWorker] | None = None
        """The process that is about to be killed."""
        self.unanswered = 0
        """Pings without an answer."""
        self.restarts = 0
        self.recycled: Child[FromWorker] | None = None
        """The process that was told to end so that a new one can replace it."""

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
        devices = [device for device in config.devices for _ in range(config.workers_per_device)]
        self.workers = [WorkerHandle(number, device) for number, device in enumerate(devices)]
        self._failed: dict[str, list[Child[FromWorker]]] = {}
        """By device: the MPS clients it had at its last fault."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, events: PoolEvents) -> None:
        """Start the template, and begin to start all workers; each reports with WorkerReady.

        Raises:
            PoolError: the template does not start, or the registry demands MPS and it is not available.
        """
        self._events = events
        process.set_subreaper(True)
        await self._mps.start()
        await self.forks.start()
        for worker in self.workers:
            self._spawn_task(self._keep_running(worker))
        self._spawn_task(self._heartbeat())

    async def stop(self) -> None:
        """End all processes of the pool; those that do not end in time are killed."""
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
        """Send a worker a message. No error if it is dead, which `worker_dead` reports."""
        child = self.workers[worker].child
        if child is not None:
            _send_quietly(child.channel, message)

    def kill(self, worker: int, reason: str) -> None:
        """Kill a worker's process, which is then replaced."""
        handle = self.workers[worker]
        if handle.child is not None:
            self._end(handle, handle.child, reason)

    def recycle(self, worker: int, *, isolated: bool = False) -> None:
        """Replace a worker's process after letting it end. No `worker_dead` is reported for it."""
        handle = self.workers[worker]
        handle.isolated = isolated
        child = handle.recycled = handle.child
        if child is not None:
            handle.ready = False
            _send_quietly(child.channel, Exit())
            asyncio.get_running_loop().call_later(STOP_TIMEOUT, self._end, handle, child)

    def _end(self, handle: WorkerHandle, child: Child[FromWorker], reason: str = "") -> None:
        """Kill a worker's process; an MPS client first gets a moment to leave the GPU."""
        if handle.mps is None:
            child.end(reason)
        elif handle.ending is not child:
            handle.ending = child
            self._spawn_task(_end_client(handle, child, reason))

    def _daemon_ended(self, device: str, reason: str) -> None:
        self._device_failed(device, reason, self._clients(device), suspected=False)

    def _clients(self, device: str) -> list[WorkerHandle]:
        """Workers that share the device through MPS and are not being recycled."""
        here = (handle for handle in self.workers if handle.device == device and handle.mps is not None)
        return [handle for handle in here if handle.child is not None and handle.child is not handle.recycled]

    def _device_failed(self, device: str, reason: str, handles: Sequence[WorkerHandle], *, suspected: bool) -> None:
        """Replace these workers together, because the MPS server accepts no client until all old ones have ended."""
        self._failed[device] = [child for handle in handles if (child := handle.child or handle.leaving) is not None]
        for handle in handles:
            handle.restarts += 1
            if handle.child is not None:
                handle.ready, handle.recycled = False, handle.child  # recycled: no `worker_dead` for each of them
                handle.child.end(reason)
        if handles:
            log.warning("%s: %s; replacing all of its %d workers", device, reason, len(handles))
            self._events.device_fault(device, [handle.number for handle in handles], reason, suspected)

    # one worker

    async def _keep_running(self, handle: WorkerHandle) -> None:
        """Root of the task that keeps a process running for one worker."""
        early_deaths = 0
        while True:
            began = time.monotonic()
            try:
                reason = await self._run_worker(handle)
            except (PoolError, ChannelError) as error:
                reason = str(error)
            if handle.child is not None and handle.child is handle.recycled:
                handle.child = handle.recycled = None
                log.info("%s ended to be replaced", handle.name)
                continue
            early_deaths = 0 if time.monotonic() - began >= STABLE else early_deaths + 1
            delay = _restart_delay(early_deaths)
            self._bury(handle, reason, delay)
            await asyncio.sleep(delay)

    async def _run_worker(self, handle: WorkerHandle) -> str:
        """Start a process and wait for its end; returns why it ended."""
        handle.unanswered = 0
        handle.ready = False
        isolated = handle.isolated
        if not isolated:
            await _until_gone(self._failed.get(handle.device, ()))
        handle.mps = None if isolated else await self._mps.client(handle.device)
        child: Child[FromWorker] = await self.forks.fork("worker", handle.name, handle.device, FromWorker, handle.mps)
        handle.child = child
        if handle.isolated is not isolated:  # `recycle` was called during the fork: this process is outdated already
            handle.recycled = child
            child.end()
        asyncio.get_running_loop().call_later(START_TIMEOUT, self._check_started, handle, child)
        if handle.leaving is not None:  # the previous process may still hold device memory
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
            return  # Its requests have been given to others already.
        handle.unanswered = 0
        if isinstance(message, WorkerReady):
            handle.ready = True
        self._events.worker_message(handle.number, message)

    # heartbeat

    async def _heartbeat(self) -> None:
        """Root of the task that pings workers. It counts unanswered pings, not time, so that workers survive a pause of
        the gateway itself."""
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
    """Wait for the clients of a failed MPS server to end, since it accepts no new client before that."""
    if left := [child.gone for child in children if not child.gone.done()]:
        await asyncio.wait(left, timeout=START_TIMEOUT)


async def _end_client(handle: WorkerHandle, child: Child[FromWorker], reason: str) -> None:
    await _leave_gpu(handle)
    child.end(reason)


async def _leave_gpu(handle: WorkerHandle) -> None:
    """End a worker's GPU work through MPS, before its process is killed."""
    if handle.mps is not None and handle.child is not None and not handle.child.exited.done():
        await control.terminate(handle.mps.pipes, handle.child.pid)


def _restart_delay(early_deaths: int) -> float:
    """Seconds to wait before the next start, after this many early deaths in a row."""
    if early_deaths < 2:
        return 0.0
    return min(RESTART_DELAY_MAX, RESTART_DELAY * 2.0 ** min(early_deaths - 2, 10))


def _send_quietly(channel: Channel[FromWorker], message: Message) -> None:
    with contextlib.suppress(ChannelError):
        channel.send(message)
