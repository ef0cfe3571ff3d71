"""Measures single activations, each after bringing the model into a given state; for `bench.activation`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.load.operating import RESTING, pid_of
from bench.load.outcomes import RequestOutcome
from bench.load.prompts import ExactWriter, PromptWriter
from bench.load.tokens import counter_of
from bench.subjects.device_memory import DeviceMemory
from bench.subjects.gateway_under_test import GatewayUnderTest
from gateway.report import ModelState
from simulator.errors import StudyError

PROMPT_TOKENS = 256
"""Tokens per prompt, chat template included."""
ANSWER_TOKENS = 8
WEIGHT_PHASES = frozenset({"copy", "weights", "assign"})
"""Phases of an activation; the weights are in place at the end of the last of these."""
BEFORE_COPY = frozenset({"resume", "teardown"})
"""Phases before the copy, for engines that report its duration separately."""
FREED = 0.9
"""Share of the weights' bytes that must be freed for the eviction to count as complete."""
FREED_WITHIN = 10.0
REST = 1.0
"""Seconds to wait before each activation: a GPU clears freed memory, some 0.1 s for 16 GB, and copies slowly
meanwhile."""
FILL_PROMPT = 4096
"""Prompt tokens of each request that fills the KV cache."""
FILL_AT_ONCE = 8
STATS_EVERY = 1.5
"""Seconds between reads of the KV cache's size, which workers report once a second."""


@dataclass(frozen=True)
class ActivationRound:
    """One activation. Times are seconds from the request; the phases are consecutive up to the first token."""

    model: str
    state: str
    nbytes: int
    phases: Mapping[str, float]
    weights: float | None
    """Until the weights are in place; None if no phase tells."""
    ready: float
    first_token: float
    prompt_tokens: int | None = None
    evict: float | None = None
    """From the eviction command until the device's memory is free; on a CPU, until the answer."""
    evict_answer: float | None = None
    copy: float | None = None
    """Duration of copying the weights, which may overlap with other phases."""

    @property
    def copy_gbps(self) -> float | None:
        """10^9 bytes per second."""
        return self.nbytes / self.copy / 1e9 if self.copy and self.nbytes else None


@dataclass(frozen=True)
class Eviction:
    """Seconds from the command until its answer, and until the device's memory is free (None on a CPU)."""

    answered: float
    freed: float | None


class Prompts:
    """Writes unique prompts of `PROMPT_TOKENS` tokens. Tokenizers are read from `folder`; without it, lengths are
    estimates."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer = PromptWriter(0)
        self._exact: dict[str, ExactWriter] = {}

    def write(self, model: str, tokens: int = PROMPT_TOKENS) -> str:
        if self._folder is None:
            return self._writer.write(tokens)
        if model not in self._exact:
            self._exact[model] = ExactWriter.counting(model, counter_of(self._folder / model))
        return self._exact[model].write(tokens)


class ActivationRounds:
    """Brings models of one gateway into a state and measures activations from there.

    `reserve` is the number of workers that the gateway keeps blank, by tearing down parked models.
    """

    def __init__(
        self,
        subject: GatewayUnderTest,
        models: Sequence[str],
        reserve: int,
        prompts: Prompts,
        memory: DeviceMemory | None,
    ) -> None:
        self._subject = subject
        self._models = models
        self._reserve = reserve
        self._prompts = prompts
        self._memory = memory

    # states

    async def disk(self, model: str) -> ActivationRound:
        """Measure a model that has not been requested yet."""
        return await self._measure(model, "disk")

    async def parked(self, model: str) -> ActivationRound:
        """Measure a parked model while all other workers are blank."""
        await self._park(model)
        return await self._measure(model, "parked")

    async def blank(self, model: str) -> ActivationRound:
        """Measure a model with weights in host memory and no skeleton, while blank workers are free.

        Needs a reserve of all workers but one, so that activating another model makes the gateway tear down parked
        ones.
        """
        other = next(name for name in self._models if name != model)
        await self._only([other])
        await self._until_held({other})
        return await self._measure(model, "blank")

    async def other(self, model: str) -> ActivationRound:
        """Measure a model while every worker except the reserve serves another one."""
        places = len(await self._subject.workers()) - self._reserve
        others = [name for name in self._models if name != model][:places]
        await self._only(others)
        await self._until_held(set(others))
        return await self._measure(model, "other")

    async def _park(self, model: str) -> None:
        await self._only([])
        if (await self._subject.models())[model].state is not ModelState.PARKED:
            await self._subject.command("activate", model=model)
            await self._subject.settled()
            await self._subject.evict(model)
        await self._until_held({model})

    async def active_and_parked(self, active: str, parked: str) -> None:
        """Bring these two models, and no others, onto workers, if the reserve leaves room for both."""
        await self._only([active, parked])
        await self._subject.evict(parked)
        await self._subject.settled()

    async def _only(self, others: Sequence[str]) -> None:
        """Make exactly `others` active."""
        for name, entry in (await self._subject.models()).items():
            if entry.state is ModelState.ACTIVE and name not in others:
                await self._subject.evict(name)
        for name in others:
            await self._subject.command("activate", model=name)
        await self._subject.settled()

    async def _until_held(self, wanted: set[str]) -> None:
        """Wait until workers hold these models, and the others are blank."""
        await self._subject.until_workers(
            lambda workers: (
                {worker.model for worker in workers if worker.model} == wanted
                and all(worker.state in RESTING for worker in workers)
            ),
            f"only {', '.join(sorted(wanted))} is on a worker",
        )

    # measuring

    async def _measure(self, model: str, state: str) -> ActivationRound:
        prompt = self._prompts.write(model)
        await asyncio.sleep(REST if self._memory is not None else 0)
        began = time.perf_counter()
        asking = asyncio.create_task(self._subject.ask(model, prompt, ANSWER_TOKENS))
        try:
            await self._subject.command("activate", model=model)  # returns when the model is active
            ready = time.perf_counter() - began
            outcome = await asking
        finally:
            asking.cancel()
        taken = await self._round(model, state, ready, outcome)
        await self._subject.settled()
        eviction = await self.evict(model, taken.nbytes)
        freed = eviction.answered if eviction.freed is None else eviction.freed
        return ActivationRound(**{**vars(taken), "evict": freed, "evict_answer": eviction.answered})

    async def _round(self, model: str, state: str, ready: float, outcome: RequestOutcome) -> ActivationRound:
        assert outcome.first_token is not None
        worker = await self._subject.active_worker(model)
        inside: dict[str, float] = worker.activation_phases_s or {}
        ready = min(max(ready, sum(inside.values())), outcome.first_token)
        before = max(0.0, ready - sum(inside.values()))
        phases = {"load" if state == "disk" else "waiting": before, **inside, "prefill": outcome.first_token - ready}
        return ActivationRound(
            model,
            state,
            (await self._subject.models())[model].weight_bytes,
            phases,
            until_weights(phases, worker.activation_copy_s),
            ready,
            outcome.first_token,
            outcome.prompt_tokens,
            copy=worker.activation_copy_s,
        )

    async def evict(self, model: str, nbytes: int) -> Eviction:
        """Evict an active model with `nbytes` of weights."""
        began = time.perf_counter()
        if self._memory is None:
            await self._subject.command("evict", model=model)
            return Eviction(time.perf_counter() - began, None)
        watching = asyncio.create_task(self._memory.until_below(self._memory.used - FREED * nbytes, FREED_WITHIN))
        try:
            await self._subject.command("evict", model=model)
            answered = time.perf_counter() - began
            freed = await watching
        finally:
            watching.cancel()
        if freed is None:
            raise StudyError(f"{model} was evicted, but its memory is still in use after {FREED_WITHIN:g} s")
        return Eviction(answered, freed)

    async def evict_full(self, model: str, kv_bytes: int) -> tuple[Eviction, int]:
        """Fill the model's KV cache up to `kv_bytes`, then evict it; returns the bytes reached too."""
        await self._subject.command("activate", model=model)
        mapped = -1
        while (now := await self._kv_bytes(model)) < kv_bytes and now > mapped:
            mapped = now
            prompts = [self._prompts.write(model, FILL_PROMPT) for _ in range(FILL_AT_ONCE)]
            await asyncio.gather(*(self._subject.ask(model, prompt, 1) for prompt in prompts))
            await asyncio.sleep(STATS_EVERY)
        nbytes = (await self._subject.models())[model].weight_bytes
        return await self.evict(model, nbytes + now), now

    async def _kv_bytes(self, model: str) -> int:
        return sum(worker.kv_bytes for worker in await self._subject.workers() if worker.model == model)

    async def parked_bytes(self, model: str, all_blank: int, of_blank: float) -> int:
        """Device memory, in bytes, of a worker with the model parked while all others are blank.

        Taken from the driver's figures per process; without those, from the memory in use in excess of `all_blank`,
        which includes what models left behind in the other workers.
        """
        assert self._memory is not None
        await self._park(model)
        (worker,) = (it for it in await self._subject.workers() if it.model == model)
        mine = {child.pid for child in psutil.Process(pid_of(worker)).children()}
        held = sum(nbytes for pid, nbytes in self._memory.by_process().items() if pid in mine)
        return held or int(self._memory.used - all_blank + of_blank)


def until_weights(phases: Mapping[str, float], copy: float | None) -> float | None:
    """Seconds until the weights are in place. `copy` is the duration of the copy, if the engine reports it."""
    if copy and (before := _until_last(phases, BEFORE_COPY)) is not None:
        return before + copy
    return _until_last(phases, WEIGHT_PHASES)


def _until_last(phases: Mapping[str, float], of: frozenset[str]) -> float | None:
    names = list(phases)
    last = max((index for index, name in enumerate(names) if name in of), default=None)
    return None if last is None else sum(phases[name] for name in names[: last + 1])
