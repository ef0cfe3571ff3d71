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
from enginepool.mps.daemon import Mps
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
    """One place of the pool: its number stays, its process may be replaced."""

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
    def __init__(self, config: PoolConfig, run_dir: Path, events: PoolEvents) -> None:
        self._config = config
        self._events = events
        self.forks = ForkServer(config, run_dir)
        self._mps = Mps(config, run_dir, self._daemon_ended)
        places = [device for device in config.devices for _ in range(config.workers_per_device)]
        self.workers = [WorkerHandle(number, device) for number, device in enumerate(places)]
        self._failed: dict[str, list[Child[FromWorker]]] = {}
        """The clients that each device had when it failed last."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the template and begin to start every worker; they report by WorkerReady.

        Raises:
            PoolError: the template does not start, or MPS cannot be had where the registry insists on it.
        """
        process.set_subreaper(True)
        await self._mps.start()
        await self.forks.start()
        for worker in self.workers:
            self._spawn_task(self._run_place(worker))
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
        place = self.workers[worker]
        if place.child is not None:
            self._end(place, place.child, reason)

    def recycle(self, worker: int, *, isolated: bool = False) -> None:
        """Let a worker's process end, and start another in its place; `worker_dead` is not told of it."""
        place = self.workers[worker]
        place.isolated = isolated
        child = place.recycled = place.child
        if child is not None:
            place.ready = False
            _send_quietly(child.channel, Exit())
            asyncio.get_running_loop().call_later(STOP_TIMEOUT, self._end, place, child)

    def _end(self, place: WorkerHandle, child: Child[FromWorker], reason: str = "") -> None:
        """Kill a process of a place, at once or after a moment."""
        if place.mps is None:
            child.end(reason)
        elif place.ending is not child:
            place.ending = child
            self._spawn_task(_end_client(place, child, reason))

    def _daemon_ended(self, device: str, reason: str) -> None:
        self._device_failed(device, reason, self._clients(device), suspected=False)

    def _clients(self, device: str) -> list[WorkerHandle]:
        """Places whose processes share the device by MPS, and are not about to make room for others."""
        here = (place for place in self.workers if place.device == device and place.mps is not None)
        return [place for place in here if place.child is not None and place.child is not place.recycled]

    def _device_failed(self, device: str, reason: str, places: Sequence[WorkerHandle], *, suspected: bool) -> None:
        """Have all of them replaced at once: nobody can use the device again before all its clients have ended."""
        self._failed[device] = [child for place in places if (child := place.child or place.leaving) is not None]
        for place in places:
            place.restarts += 1
            if place.child is not None:
                place.ready, place.recycled = False, place.child
                place.child.end(reason)
        if places:
            log.warning("%s: %s; all of its %d workers are replaced", device, reason, len(places))
            self._events.device_fault(device, [place.number for place in places], reason, suspected)

    # one place of the pool

    async def _run_place(self, place: WorkerHandle) -> None:
        """Root of the task that keeps one place filled."""
        early_deaths = 0
        while True:
            began = time.monotonic()
            try:
                reason = await self._run_worker(place)
            except (PoolError, ChannelError) as error:
                reason = str(error)
            if place.child is not None and place.child is place.recycled:
                place.child = place.recycled = None
                log.info("%s has made room for a new process", place.name)
                continue
            early_deaths = 0 if time.monotonic() - began >= STABLE else early_deaths + 1
            delay = _restart_delay(early_deaths)
            self._bury(place, reason, delay)
            await asyncio.sleep(delay)

    async def _run_worker(self, place: WorkerHandle) -> str:
        """Start one process and wait for its end; returns why it ended."""
        place.unanswered = 0
        place.ready = False
        isolated = place.isolated
        if not isolated:
            await _until_gone(self._failed.get(place.device, ()))
        place.mps = None if isolated else await self._mps.client(place.device)
        child: Child[FromWorker] = await self.forks.fork("worker", place.name, place.device, FromWorker, place.mps)
        place.child = child
        if place.isolated is not isolated:  # told so while this one was on its way
            place.recycled = child
            child.end()
        asyncio.get_running_loop().call_later(START_TIMEOUT, self._check_started, place, child)
        if place.leaving is not None:  # what it has of the device's memory is not free before
            await asyncio.wait((place.leaving.gone, child.exited), return_when=asyncio.FIRST_COMPLETED)
        child.receive(lambda message: self._on_message(place, message))
        reason = await asyncio.shield(child.exited)
        place.leaving = child
        return reason

    def _check_started(self, place: WorkerHandle, child: Child[FromWorker]) -> None:
        if place.child is child and not place.ready:
            self.kill(place.number, f"not ready after {START_TIMEOUT:g} s")

    def _bury(self, place: WorkerHandle, reason: str, delay: float) -> None:
        place.child = None
        log.warning("%s is gone: %s; starting another%s", place.name, reason, f" in {delay:g} s" if delay else "")
        if reason == process.DEVICE_FAULT and place.mps is not None:
            places = sorted([place, *self._clients(place.device)], key=lambda place: place.number)
            self._device_failed(place.device, reason, places, suspected=True)
        else:
            place.restarts += 1
            self._events.worker_dead(place.number, reason)

    def _on_message(self, place: WorkerHandle, message: FromWorker) -> None:
        if place.recycled is not None and place.child is place.recycled:
            return  # What it still says is about work that others have by now.
        place.unanswered = 0
        if isinstance(message, WorkerReady):
            place.ready = True
        self._events.worker_message(place.number, message)

    # heartbeat

    async def _heartbeat(self) -> None:
        """Root of the task that pings. Counts unanswered pings, not time: a pause of the gateway kills nobody."""
        serial = 0
        while True:
            await asyncio.sleep(self._config.heartbeat)
            serial += 1
            for place in self.workers:
                if place.ready and place.child is not None:
                    self._ping(place, place.child, serial)

    def _ping(self, place: WorkerHandle, child: Child[FromWorker], serial: int) -> None:
        if place.unanswered * self._config.heartbeat >= self._config.silence:
            self.kill(place.number, f"silent for {self._config.silence:g} s")
            return
        place.unanswered += 1
        _send_quietly(child.channel, Ping(serial))

    def _spawn_task(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _until_gone(children: Sequence[Child[FromWorker]]) -> None:
    """An MPS server that has failed takes no client before all that it had have ended."""
    if left := [child.gone for child in children if not child.gone.done()]:
        await asyncio.wait(left, timeout=START_TIMEOUT)


async def _end_client(place: WorkerHandle, child: Child[FromWorker], reason: str) -> None:
    await _leave_gpu(place)
    child.end(reason)


async def _leave_gpu(place: WorkerHandle) -> None:
    """Before its process is killed."""
    if place.mps is not None and place.child is not None and not place.child.exited.done():
        await control.terminate(place.mps.pipes, place.child.pid)


def _restart_delay(early_deaths: int) -> float:
    """Seconds to wait after this many early deaths in a row."""
    if early_deaths < 2:
        return 0.0
    return min(RESTART_DELAY_MAX, RESTART_DELAY * 2.0 ** min(early_deaths - 2, 10))


def _send_quietly(channel: Channel[FromWorker], message: Message) -> None:
    with contextlib.suppress(ChannelError):
        channel.send(message)
