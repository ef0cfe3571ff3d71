"""One gateway for many runs: weights are loaded and processes warmed up once, and the policy changes between runs."""

from __future__ import annotations

import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load.counters import of_registry
from bench.load.operating import PATIENCE
from bench.load.outcomes import ClientSlo, RequestOutcome
from bench.load.prompt_recipes import PromptRecipe, bodies_of, meet
from bench.load.replay import Replay
from bench.load.summary import summarize
from bench.load.warm_up import POLICY, WarmUp
from bench.load.workload import Arrival
from bench.subjects.gateway_under_test import GatewayUnderTest, serving
from config.registry import Registry
from simulator.progress import say

START_TIMEOUT = 600.0
ANSWER_WITHIN = 120.0
"""Seconds after which a request counts as failed."""


@dataclass(frozen=True)
class MeasuredRun:
    outcomes: list[RequestOutcome]
    figures: dict[str, Any]
    """Figures in the format of `bench.load`."""
    began: float
    """Seconds from changing the policy until the trace began."""
    took: float
    replaced: int
    """Number of workers whose process was replaced during the run."""


class Session:
    def __init__(self, subject: GatewayUnderTest, met: Mapping[str, PromptRecipe], warming: WarmUp) -> None:
        self._subject = subject
        self._met = met
        self._warming = warming

    async def run(self, policy: str, plan: Sequence[Arrival], slos: Mapping[str, ClientSlo]) -> MeasuredRun:
        """Execute a run with a new scheduler and all workers blank at first. Raises: StudyError."""
        bodies = bodies_of(plan, self._met)
        ordered = time.perf_counter()
        await self._warm()
        await self._subject.command("policy", policy=policy)
        before = await self._subject.settled()
        replay = Replay(self._subject.client, self._subject.url, plan, bodies, ANSWER_WITHIN)
        took = await replay.run()
        after = await self._subject.workers()
        return MeasuredRun(
            replay.outcomes,
            summarize(replay.outcomes, slos, took),
            replay.began - ordered,
            took,
            sum(then.pid != now.pid for then, now in zip(before, after, strict=True)),
        )

    async def _warm(self) -> None:
        """Warm up processes that were replaced since the last warm-up."""
        if self._warming.lacks(await self._subject.workers()):
            await self._subject.command("policy", policy=POLICY)
            await self._warming.everywhere()


@asynccontextmanager
async def session(
    content: Mapping[str, Any], registry: Registry, seed: int, details: Path | None, name: str
) -> AsyncIterator[Session]:
    """Run a warmed-up gateway on the registry `content`, whose policy must be `POLICY`; its log and recordings go to
    `details`.

    Raises:
        StudyError: the gateway does not start, or a model does not answer.
    """
    record = None if details is None else (details / f"{name}.jsonl").absolute()
    async with serving(content, START_TIMEOUT, record) as subject:
        try:
            models = [model.name for model in registry.models]
            met = await meet(subject.client, subject.url, models, of_registry(registry, models), seed, PATIENCE)
            warming = WarmUp(subject, met)
            await warming.everywhere()
            say(warming.report())
            yield Session(subject, met, warming)
        finally:
            if details is not None:
                shutil.copyfile(subject.log, details / f"{name}.log")
