"""One fault after another under load. After each the gateway has to be well again, and what it has cost is checked."""

from __future__ import annotations

import asyncio
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from gateway.report import Status
from tests.chaos.faults import MEANWHILE, Hit, Kind, Scene, kind_of
from tests.chaos.left import MARK, gathered, held_by, left_behind, shared_memory_now
from tests.chaos.record import Record
from tests.chaos.registry import make_models, registry
from tests.chaos.target import Target
from tests.chaos.traffic import Outcome, Traffic, answers_of, questions

PATIENCE = 300.0
"""Seconds in which everything is to be well again."""
POLICIES = ("prism", "lru")
NOTHING = Hit("")


@dataclass(frozen=True)
class Plan:
    engine: str
    seed: int
    numbers: Sequence[int]
    """Of the faults that one gateway is to live through."""


class Batch:
    """The life of one gateway. `problem` says which promise was broken, and is empty if none was."""

    def __init__(self, plan: Plan, made: Path, folder: Path, keep: Callable[[Record], None]) -> None:
        """`made` has the demo's models, or will; all else lies in `folder`. `keep` gets what came of each fault."""
        self._plan = plan
        self._models = tuple(make_models(made, folder))
        self._folder = folder / "gateway"
        self._keep = keep
        self._chance = random.Random(f"batch:{self._seed(plan.numbers[0])}")
        self._restarts = 0
        self.problem = ""
        self.log: list[str] = []

    def run(self) -> None:
        mark = os.environ[MARK] = uuid.uuid4().hex
        before = shared_memory_now()
        policy = self._chance.choice(POLICIES)
        target = Target.start_on_disk(self._folder, registry(self._plan.engine, self._models, policy))
        self.log = target.log
        try:
            asyncio.run(self._befall(target))
            self.problem = self.problem or self._end(target, mark, before)
        finally:
            target.close()

    def _end(self, target: Target, mark: str, shared_memory: frozenset[str]) -> str:
        """As a service manager ends it, or as the kernel does where memory is short."""
        if killed := self._chance.random() < 0.5:
            target.kill()
        elif (status := target.stop()) != 0:
            return f"the gateway exited with {status}"
        left = left_behind(mark, target.disk, shared_memory, sockets=not killed)
        return f"after the gateway's end there are left: {left}" if left else ""

    async def _befall(self, target: Target) -> None:
        async with _session(target) as client:
            answers = await answers_of(client, questions(path.name for path in self._models))
        before = await asyncio.to_thread(held_by, target)
        async with _session(target) as client:
            await self._befall_under_load(target, Traffic(client, answers, self._seed(self._plan.numbers[0])))
        if not self.problem:
            more = await asyncio.to_thread(gathered, target, before)
            self.problem = f"the gateway has gathered {more}" if more else ""

    async def _befall_under_load(self, target: Target, traffic: Traffic) -> None:
        async with traffic.running():
            for number in self._plan.numbers:
                kind = kind_of(self._plan.engine, self._plan.seed, number)
                scene = Scene(target, traffic, self._models, random.Random(self._seed(number)), number)
                record = await self._inflict(kind, scene)
                self._keep(record)
                if record.violations:
                    self.problem = describe(record)
                    return

    def _seed(self, number: int) -> str:
        return f"{self._plan.engine}:{self._plan.seed}:{number}"

    async def _inflict(self, kind: Kind, scene: Scene) -> Record:
        began = time.monotonic()
        hit, problems = NOTHING, []
        try:
            async with asyncio.timeout(PATIENCE):
                async with kind.fault(scene) as found:
                    hit = found or NOTHING
                    await _meanwhile(scene, hit)
                await _well_again(scene, hit)
        except TimeoutError:
            problems.append(f"after {PATIENCE:g} s not all is well: {_in_short(await scene.target.look())}")
        outcomes, restarted = scene.traffic.take(), await self._restarted(scene.target)
        counts = Counter(it.verdict for it in outcomes)
        problems += judge(hit, outcomes, restarted)
        return Record(
            engine=self._plan.engine, seed=self._plan.seed, number=scene.number, kind=kind.name, victim=hit.victim,
            seconds=round(time.monotonic() - began, 2), requests=len(outcomes), ended=counts["ended"],
            refused=counts["refused"], lost=counts["lost"], wrong=counts["wrong"], restarted=restarted,
            violations=tuple(problems),
        )  # fmt: skip

    async def _restarted(self, target: Target) -> int:
        """Workers, since this was asked last."""
        before, self._restarts = self._restarts, sum(it.restarts for it in (await target.look()).workers)
        return self._restarts - before


def describe(record: Record) -> str:
    said = f"{record.engine}, seed {record.seed}, fault {record.number} ({record.kind}: {record.victim}):"
    return "\n  ".join((said, *record.violations))


def judge(hit: Hit, outcomes: Iterable[Outcome], restarted: int) -> list[str]:
    """What no fault, or not this one, may cost."""
    problems = [str(it) for it in outcomes if not _is_due(hit, it)]
    if restarted not in hit.deaths:
        problems.append(f"{restarted} workers were restarted, expected {hit.deaths}")
    return problems


def _is_due(hit: Hit, outcome: Outcome) -> bool:
    match outcome.verdict:
        case "right":
            return True
        case "ended":
            return outcome.worker in hit.workers and '"aborted"' in outcome.detail
        case "refused":
            return outcome.question.model in hit.unavailable and '"model_unavailable"' in outcome.detail
        case _:
            return False


async def _meanwhile(scene: Scene, hit: Hit) -> None:
    """Others are served."""
    for model in sorted(hit.served):
        await scene.traffic.ask_beside(model, scene.chance)
    if not hit.served:
        await scene.traffic.right_answers(MEANWHILE)


async def _well_again(scene: Scene, hit: Hit) -> None:
    """Every worker is there, all that began before has ended, and what could not be served is."""
    await scene.target.well()
    await scene.traffic.settle()
    await scene.traffic.right_answers(1, hit.unavailable)
    await scene.target.well()


def _session(target: Target) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        target.url, connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(None),
        headers={"Content-Type": "application/json"},
    )  # fmt: skip


def _in_short(status: Status) -> str:
    workers = [(it.worker, it.pid, it.state, it.model, it.running) for it in status.workers]
    models = [(it.name, it.state, it.waiting, it.failure) for it in status.models]
    return f"workers {workers}, models {models}, loading {status.loading}"
