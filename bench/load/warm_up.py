"""Warms up every model in every worker process, because a process's first use of a model takes longer than later ones.

Kernels are compiled once per machine (`prism warm`) but loaded once per process. So each model is activated on each
worker and sent requests there, under the policy `lru`, which does not move models by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from bench.load.operating import Operator, pid_of, send
from bench.load.prompt_recipes import PromptRecipe
from bench.load.workload import Arrival
from gateway.report import WorkerStatus
from scheduler.state.phases import Phase
from simulator.errors import StudyError
from simulator.progress import say, say_again

POLICY = "lru"
PROMPTS = (32, 1500)
"""Prompt lengths, in tokens, of requests sent one after the other."""
TOGETHER = 4
"""Number of short requests sent concurrently after that."""
ANSWER = 8
"""Tokens per answer."""
AT_A_TIME = 3
"""Workers of a device warmed up concurrently."""

Pair = tuple[WorkerStatus, str]
"""A worker and a model."""


class WarmUp:
    """Tracks which models are warm in which processes; `cold` says why others are not."""

    def __init__(self, subject: Operator, met: Mapping[str, PromptRecipe]) -> None:
        self._subject = subject
        self._met = met
        self._warm: set[tuple[int, str]] = set()
        self._busy: set[int | str] = set()
        """Workers and models being warmed up."""
        self._freed = asyncio.Condition()
        self.cold: dict[tuple[int, str], str] = {}

    async def everywhere(self) -> None:
        """Warm up everything that is cold. The policy must be `POLICY`, and there must be no other requests.

        Raises: StudyError.
        """
        workers = await self._subject.settled()
        pinned = {name for name, entry in (await self._subject.models()).items() if entry.pinned}
        devices = list(dict.fromkeys(worker.device for worker in workers))
        models = list(self._met)
        lanes = []
        for index, device in enumerate(devices):
            turned = models[index * len(models) // len(devices) :] + models[: index * len(models) // len(devices)]
            here = [worker for worker in workers if worker.device == device]
            wanted: list[Pair] = [
                (worker, model) for model in turned for worker in here if self._wanted(worker, model, pinned)
            ]
            lanes += [self._lane(wanted) for _ in range(AT_A_TIME)]
        await asyncio.gather(*lanes)

    def _wanted(self, worker: WorkerStatus, model: str, pinned: set[str]) -> bool:
        """Whether to warm up a model on a worker: a pinned model only on its own, which gets no others."""
        kept = worker.model if worker.state is Phase.ACTIVE and worker.model in pinned else None
        if model in pinned or kept:
            return kept == model and (worker.pid, model) not in self._warm
        return (worker.pid, model) not in self._warm

    async def _lane(self, wanted: list[Pair]) -> None:
        """Process pairs one after the other. No model or worker is in two lanes at a time."""
        while wanted:
            pair = next((it for it in wanted if not {it[0].worker, it[1]} & self._busy), None)
            if pair is None:
                async with self._freed:
                    await self._freed.wait()
                continue
            wanted.remove(pair)
            say_again(f"warming up: {len(wanted)} left here; {pair[1]} on worker {pair[0].worker}")
            self._busy |= {pair[0].worker, pair[1]}
            try:
                await self._warm_one(*pair)
            finally:
                self._busy -= {pair[0].worker, pair[1]}
                async with self._freed:
                    self._freed.notify_all()

    async def _warm_one(self, worker: WorkerStatus, model: str) -> None:
        number = worker.worker
        try:
            pid = pid_of(worker)
            pinned = (await self._subject.models())[model].pinned
            if not pinned:
                await self._subject.evict(model)
                await self._subject.command("activate", model=model, worker=number)
            await self._subject.until_workers(lambda found: not found[number].rehearsing, f"{model} is rehearsed")
            await self._ask(model, number)
            if not pinned:
                await self._subject.evict(model)
        except StudyError as error:
            self.cold[number, model] = str(error).splitlines()[0]
        else:
            self._warm.add((pid, model))
            self.cold.pop((number, model), None)

    async def _ask(self, model: str, worker: int) -> None:
        """Send the requests. Raises: StudyError if one fails or another worker answers."""
        alone = self._met[model].bodies(model, [Arrival(0.0, model, tokens, ANSWER) for tokens in PROMPTS])
        together = self._met[model].bodies(model, [Arrival(0.0, model, PROMPTS[0], ANSWER)] * TOGETHER)
        answered = [await send(self._subject.client, self._subject.url, model, body) for body in alone]
        answered += await asyncio.gather(
            *(send(self._subject.client, self._subject.url, model, body) for body in together)
        )
        if others := {outcome.worker for outcome in answered} - {str(worker)}:
            raise StudyError(f"worker {', '.join(map(str, others))} answered in place of {worker}")

    def lacks(self, workers: Sequence[WorkerStatus]) -> bool:
        """Whether a process is not warm yet, for example because it was replaced."""
        return any(
            (worker.pid, model) not in self._warm and (worker.worker, model) not in self.cold
            for worker in workers
            for model in self._met
        )

    def report(self) -> str:
        """A summary in one line."""
        cold = "".join(f"; {model} not on worker {worker}: {why}" for (worker, model), why in self.cold.items())
        return f"{len(self._warm)} times a model is warm in a process{cold}"


@asynccontextmanager
async def left_as_found(subject: Operator) -> AsyncIterator[None]:
    """Switch to the policy `POLICY`; afterwards restore the previous policy, and the active and parked models.

    Raises: StudyError.
    """
    policy = await subject.policy()
    before = await subject.settled()
    await subject.command("policy", policy=POLICY)
    try:
        yield
    finally:
        await subject.command("policy", policy=policy)
        await _restore(subject, before)


async def _restore(subject: Operator, before: Sequence[WorkerStatus]) -> None:
    """Restore the state of workers; pinned models return by themselves."""
    movable = {name for name, entry in (await subject.models()).items() if not entry.pinned}
    for state in (Phase.PARKED, Phase.ACTIVE):
        for worker in before:
            if worker.state is state and worker.model in movable:
                await subject.command("activate", model=worker.model, worker=worker.worker)
                if state is Phase.PARKED:
                    await subject.command("evict", model=worker.model)
    await subject.settled()


async def warm_up(subject: Operator, met: Mapping[str, PromptRecipe]) -> None:
    """Warm up a gateway that is not the benchmark's own, and restore its state. Raises: StudyError."""
    async with left_as_found(subject):
        warming = WarmUp(subject, met)
        await warming.everywhere()
    say(warming.report())
