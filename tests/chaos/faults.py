"""The kinds of faults. Each is a context: entered once it has happened, left when it is to be undone."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos import clients
from tests.chaos.target import Target
from tests.chaos.traffic import Traffic

PATIENCE = 20.0
"""Seconds to wait for a victim; then there is none."""
MEANWHILE = 3
"""Answers that others get while a fault lasts."""
BUSY = 0.7
"""Share of the workers that are hit while they serve somebody, if one does."""
FILES = ("model.safetensors", "config.json", "tokenizer.json")


@dataclass(frozen=True)
class Scene:
    target: Target
    traffic: Traffic
    models: tuple[Path, ...]
    chance: random.Random
    number: int


@dataclass(frozen=True)
class Hit:
    """A fault that has happened, and what it may cost."""

    victim: str
    workers: frozenset[int] = frozenset()
    """Whose processes end, so that streams which they have begun may end."""
    deaths: range = range(1)
    """Of workers: how many there are in the end."""
    unavailable: frozenset[str] = frozenset()
    """Models that cannot be brought up, of which requests may be refused."""
    served: frozenset[str] = frozenset()
    """Models that are served all the while, where others wait; none: whatever others ask for."""


Fault = Callable[[Scene], AbstractAsyncContextManager[Hit | None]]
"""None: it has found no victim."""


@dataclass(frozen=True)
class Kind:
    name: str
    fault: Fault
    engines: tuple[str, ...] = ("transformers", "sglang")


def kinds(engine: str) -> list[Kind]:
    return [kind for kind in KINDS if engine in kind.engines]


def kind_of(engine: str, seed: int, number: int) -> Kind:
    """Each comes once before one comes again, in an order of chance."""
    deck = kinds(engine)
    around, place = divmod(number, len(deck))
    random.Random(f"{engine}:{seed}:{around}").shuffle(deck)
    return deck[place]


# --- workers --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def kill_front(scene: Scene) -> AsyncIterator[Hit]:
    yield await _end_worker(scene, signal.SIGKILL)


@asynccontextmanager
async def stop_front(scene: Scene) -> AsyncIterator[Hit]:
    """It is never continued: the gateway has to notice."""
    yield await _end_worker(scene, signal.SIGSTOP)


@asynccontextmanager
async def kill_rank(scene: Scene) -> AsyncIterator[Hit]:
    yield await _end_worker(scene, signal.SIGKILL, rank=True)


@asynccontextmanager
async def stop_rank(scene: Scene) -> AsyncIterator[Hit]:
    yield await _end_worker(scene, signal.SIGSTOP, rank=True)


async def _end_worker(scene: Scene, how: signal.Signals, *, rank: bool = False) -> Hit:
    while True:
        status = await scene.target.well()
        busy = [worker for worker in status.workers if worker.running]
        worker = scene.chance.choice(busy if busy and scene.chance.random() < BUSY else status.workers)
        with suppress(psutil.NoSuchProcess):  # it has just made room for another one
            process = psutil.Process(worker.pid)
            if rank:
                process = min(process.children(), key=psutil.Process.create_time)
            process.send_signal(how)
            victim = f"worker {worker.worker}, {worker.state}, pid {process.pid}"
            return Hit(victim, frozenset({worker.worker}), range(1, 2))


# --- the template and the loader ------------------------------------------------------------------------------------


@asynccontextmanager
async def kill_template(scene: Scene) -> AsyncIterator[Hit | None]:
    yield await _end_template(scene, signal.SIGKILL)


@asynccontextmanager
async def stop_template(scene: Scene) -> AsyncIterator[Hit | None]:
    yield await _end_template(scene, signal.SIGSTOP)


async def _end_template(scene: Scene, how: signal.Signals) -> Hit | None:
    """And a worker, so that it is missed."""
    template = scene.target.template()
    if template is None:
        return None
    template.send_signal(how)
    hit = await _end_worker(scene, signal.SIGKILL)
    await _until(lambda: _is_gone(template))
    return Hit(f"the template, pid {template.pid}; {hit.victim}", hit.workers, hit.deaths)


@asynccontextmanager
async def kill_loader(scene: Scene) -> AsyncIterator[Hit | None]:
    found = await _stop_loader(scene)
    if found is None:
        yield None
        return
    loader, model = found
    before = len(scene.target.log)
    loader.kill()
    happened = await _until(lambda: _is_logged(scene.target.log[before:], (f"loading {model} failed: ",)))
    yield Hit(f"the loader of {model}, pid {loader.pid}", unavailable=frozenset({model})) if happened else None


@asynccontextmanager
async def stop_loader(scene: Scene) -> AsyncIterator[Hit | None]:
    """It goes on in the end: a disk that takes as long does nothing else."""
    found = await _stop_loader(scene)
    if found is None:
        yield None
        return
    loader, model = found
    try:
        models = (await scene.target.look()).models
        active = frozenset(it.name for it in models if it.state == "active")
        yield Hit(f"the loader of {model}, pid {loader.pid}", served=active)
    finally:
        _continue(loader)


async def _stop_loader(scene: Scene) -> tuple[psutil.Process, str] | None:
    """The next one, in the middle of its work, and its model."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        status = await scene.target.look()
        loader = scene.target.loader(status)
        if loader is not None and _suspend(loader):
            (model,) = status.loading
            if (await scene.target.look()).loading.keys() == {model}:
                return loader, model
            _continue(loader)
        await asyncio.sleep(0.002)
    return None


def _suspend(process: psutil.Process) -> bool:
    try:
        process.suspend()
    except psutil.NoSuchProcess:
        return False
    return process.status() == psutil.STATUS_STOPPED


def _continue(process: psutil.Process) -> None:
    if not _is_gone(process):
        process.resume()


# --- clients --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def clients_leave(scene: Scene) -> AsyncIterator[Hit]:
    yield await _send_clients(scene, clients.leave)


@asynccontextmanager
async def clients_cut_bodies(scene: Scene) -> AsyncIterator[Hit]:
    yield await _send_clients(scene, clients.cut_body)


@asynccontextmanager
async def clients_stall(scene: Scene) -> AsyncIterator[Hit]:
    """Some until the gateway gives them up; some do not read, and are as if they did while there is room."""
    asked = scene.traffic.any_question(scene.chance)
    connections = [await clients.deaf(scene.target.url, asked, -scene.number) for _ in range(2)]
    try:
        yield await _send_clients(scene, clients.stall)
    finally:
        for connection in connections:
            connection.writer.transport.abort()


async def _send_clients(scene: Scene, client: clients.Client) -> Hit:
    count = scene.chance.randint(3, 8)
    asked = [(scene.traffic.any_question(scene.chance), f"{scene.number}:{it}") for it in range(count)]
    async with asyncio.TaskGroup() as group:
        for question, seed in asked:
            group.create_task(client(scene.target.url, question, -scene.number, random.Random(seed)))
    return Hit(f"{count} clients")


# --- a full disk, a full pipe ---------------------------------------------------------------------------------------


@asynccontextmanager
async def full_disk(scene: Scene) -> AsyncIterator[Hit | None]:
    """Where nobody can be started. Sometimes a worker ends, and cannot be replaced before there is room."""
    if not scene.target.can_be_full:
        yield None
        return
    every = frozenset(path.name for path in scene.models)
    with scene.target.full_disk():
        if scene.chance.random() < 0.5:
            yield Hit("the disk", unavailable=every)
        else:
            hit = await _end_worker(scene, signal.SIGKILL)
            yield Hit(f"the disk; {hit.victim}", hit.workers, range(1, 1000), every)


@asynccontextmanager
async def full_pipe(scene: Scene) -> AsyncIterator[Hit]:
    """Nobody reads the log, while a worker ends and others come."""
    with scene.target.full_pipe():
        hit = await _end_worker(scene, signal.SIGKILL)
        yield Hit(f"the log's reader; {hit.victim}", hit.workers, hit.deaths)


# --- models' files --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def file_gone(scene: Scene) -> AsyncIterator[Hit | None]:
    with _without(file := _any_file(scene)):
        yield await _felt(scene, file)


@asynccontextmanager
async def file_cut(scene: Scene) -> AsyncIterator[Hit | None]:
    with _without(file := _any_file(scene)) as kept:
        shutil.copyfile(kept, file)
        os.truncate(file, int(kept.stat().st_size * scene.chance.random()))
        yield await _felt(scene, file)


def _any_file(scene: Scene) -> Path:
    return scene.chance.choice(scene.models) / scene.chance.choice(FILES)


@contextmanager
def _without(file: Path) -> Iterator[Path]:
    """Yields where it is meanwhile."""
    kept = file.with_name("kept")
    file.rename(kept)
    try:
        yield kept
    finally:
        kept.replace(file)


async def _felt(scene: Scene, file: Path) -> Hit | None:
    """Once somebody has wanted to read it."""
    model = file.parent.name
    before = len(scene.target.log)
    signs = (f"loading {model} failed: ", f"E prism.gateway: activating {model} on worker ")
    if not await _until(lambda: _is_logged(scene.target.log[before:], signs)):
        return None
    return Hit(f"{file.name} of {model}", unavailable=frozenset({model}))


# --- helpers --------------------------------------------------------------------------------------------------------


async def _until(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


def _is_logged(lines: Sequence[str], signs: Sequence[str]) -> bool:
    return any(sign in line for line in lines for sign in signs)


def _is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


KINDS: Sequence[Kind] = (
    Kind("front killed", kill_front),
    Kind("front stopped", stop_front),
    Kind("rank killed", kill_rank, ("sglang",)),
    Kind("rank stopped", stop_rank, ("sglang",)),
    Kind("template killed", kill_template),
    Kind("template stopped", stop_template),
    Kind("loader killed", kill_loader),
    Kind("loader stopped", stop_loader),
    Kind("clients leave", clients_leave),
    Kind("clients stall", clients_stall),
    Kind("clients cut bodies", clients_cut_bodies),
    Kind("disk full", full_disk),
    Kind("pipe full", full_pipe),
    Kind("file gone", file_gone),
    Kind("file cut", file_cut),
)
