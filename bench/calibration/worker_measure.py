"""Executes a plan of measurements of Prism's own workers, through the gateway."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from bench.calibration.worker_plan import (
    BATCHES,
    EVEN,
    FIRST_USE,
    PART_SECONDS,
    PROMPT,
    PROMPTS,
    STEP_SECONDS,
    UNEVEN,
    USE_SECONDS,
    GroupMember,
    WorkerPlan,
    WorkerSeat,
)
from bench.calibration.worker_rows import Busy, EngineGroup, FirstTokens, FirstUse, Stalls, Steps, WorkerRows
from bench.calibration.worker_streams import DecodeRate, Streams, rates
from bench.load.operating import RESTING
from bench.subjects.gateway_under_test import GatewayUnderTest
from bench.subjects.rawclient import EventCount
from simulator.errors import StudyError
from simulator.progress import say

WINDOW = 0.4
"""Seconds over which the steps of one engine are counted; of several:"""
WINDOW_TOGETHER = 1.0
REHEARSAL_BEGINS = 0.4
"""Seconds without requests after which a worker will have begun warming up its model, if it is going to."""
CAPTURES = 1.0
"""Seconds for an idle worker to capture missing graphs, which take 50 ms each."""
TIMES = 3
ENDLESS = {"ignore_eos": True}
"""Makes SGLang continue past end-of-sequence tokens."""

Step = tuple[str, Callable[[], Awaitable[None]]]


class WorkerRun:
    """The measurements on one gateway, with or without MPS; `rows` is saved after each step."""

    def __init__(
        self,
        subject: GatewayUnderTest,
        plan: WorkerPlan,
        rows: WorkerRows,
        save: Callable[[], None],
        *,
        mps: bool,
        options: Mapping[str, Any] = ENDLESS,
    ) -> None:
        self._subject = subject
        self._streams = Streams(subject.url, options)
        self._plan = plan
        self._rows = rows
        self._save = save
        self._mps = mps
        self._active: set[str] = set()
        self.failures: list[str] = []

    async def measure(self, parts: Iterable[str]) -> None:
        """Run all steps; failed ones are recorded in `failures`. Raises: StudyError if no further step is possible."""
        steps = {"alone": self._alone, "idle": self._idle, "uneven": self._uneven, "together": self._together}
        self._rows.forget(FIRST_USE, self._mps)
        for seat in self._plan.seats:
            await self._take(f"{seat.name}: its first use", partial(self._use, seat), USE_SECONDS)
        for part in parts:
            self._rows.forget(part, self._mps)
            deadline = time.monotonic() + PART_SECONDS
            for words, step in steps[part]():
                if time.monotonic() > deadline:
                    self._fail(f"{part}: {words}: left out, the part has taken {PART_SECONDS:.0f} s")
                else:
                    await self._take(f"{part}: {words}", step)
        await self._subject.check_workers()

    async def _take(self, words: str, step: Callable[[], Awaitable[None]], within: float = STEP_SECONDS) -> None:
        say(f"{'MPS, ' if self._mps else ''}{words}")
        try:
            async with asyncio.timeout(within):
                await step()
        except TimeoutError:
            self._fail(f"{words}: not done after {within:.0f} s")
        except StudyError as error:
            self._fail(f"{words}: {error}")
        self._save()

    def _fail(self, words: str) -> None:
        say(words)
        self.failures.append(words)

    # the parts

    def _alone(self) -> list[Step]:
        steps: list[Step] = []
        for seat in self._plan.alone:
            steps.append((f"{seat.name}: nobody beside", partial(self._only, [seat])))
            steps += self._of_one(seat, "alone", BATCHES)
        return steps

    def _idle(self) -> list[Step]:
        steps: list[Step] = [("all models active", partial(self._only, self._plan.seats))]
        for place, seat in enumerate(self._plan.alone):
            steps += self._of_one(seat, "idle", BATCHES if place == 0 else (1, 16))
        return steps

    def _of_one(self, seat: WorkerSeat, part: str, batches: Sequence[int]) -> list[Step]:
        found: list[Step] = [
            (f"{seat.name}: decode, batch {batch}", partial(self._decode, seat, part, [PROMPT] * batch))
            for batch in batches
        ]
        for tokens in PROMPTS:
            found.append((f"{seat.name}: a prompt of {tokens} tokens", partial(self._first, seat, part, tokens)))
            found.append((f"{seat.name}: {tokens} tokens beside a stream", partial(self._stall, seat, part, tokens)))
        return found

    def _uneven(self) -> list[Step]:
        steps: list[Step] = [("its models active", partial(self._only, self._plan.uneven))]
        for seat in self._plan.uneven:
            for words, contexts in (("even", EVEN), ("uneven", UNEVEN)):
                run = partial(self._decode, seat, "uneven", contexts)
                steps.append((f"{words} contexts, {seat.kv_splits} splits", run))
        return steps

    def _together(self) -> list[Step]:
        steps: list[Step] = [("all models active", partial(self._only, self._plan.seats))]
        return steps + [(_words(group), partial(self._group, group)) for group in self._plan.groups]

    # one engine

    async def _decode(self, seat: WorkerSeat, part: str, contexts: list[int]) -> None:
        async with self._decoding(seat, contexts) as count:
            (rate,) = await rates([count], WINDOW)
        row = Steps(
            part=part,
            mps=self._mps,
            model=seat.model,
            beside=len(self._active) - 1,
            contexts=contexts,
            said=rate.said,
            kv_splits=seat.kv_splits,
            seconds=rate.seconds,
        )
        self._rows.steps.append(row)

    async def _first(self, seat: WorkerSeat, part: str, tokens: int) -> None:
        seconds = [await self._first_token(seat, tokens) for _ in range(1 + TIMES)]
        row = FirstTokens(
            part=part,
            mps=self._mps,
            model=seat.model,
            beside=len(self._active) - 1,
            tokens=tokens,
            seconds=seconds[1:],
        )
        self._rows.firsts.append(row)

    async def _stall(self, seat: WorkerSeat, part: str, tokens: int) -> None:
        async with self._decoding(seat, [PROMPT]) as count:
            count.timing = True
            await asyncio.sleep(WINDOW / 2)
            plain = statistics.median(count.gaps)
            seconds = [await self._longest_gap(seat, tokens, count) for _ in range(1 + TIMES)]
        row = Stalls(
            part=part,
            mps=self._mps,
            model=seat.model,
            beside=len(self._active) - 1,
            tokens=tokens,
            seconds=seconds[1:],
            plain=plain,
        )
        self._rows.stalls.append(row)

    async def _longest_gap(self, seat: WorkerSeat, tokens: int, count: EventCount) -> float:
        """The longest gap of a stream around a prefill."""
        seen = len(count.gaps)
        await self._streams.first_token(seat.name, tokens)
        await asyncio.sleep(WINDOW / 8)
        return max(count.gaps[seen:])

    async def _first_token(self, seat: WorkerSeat, tokens: int) -> float:
        seconds = await self._streams.first_token(seat.name, tokens)
        await self._quiet()
        return seconds

    @asynccontextmanager
    async def _decoding(self, seat: WorkerSeat, contexts: Sequence[int]) -> AsyncIterator[EventCount]:
        async with self._streams.decoding(seat.name, contexts) as count:
            yield count
        await self._quiet()

    # several

    async def _group(self, group: list[GroupMember]) -> None:
        async with AsyncExitStack() as stack:
            counts = {
                it.seat.name: await stack.enter_async_context(
                    self._streams.decoding(it.seat.name, [it.prompt] * it.batch)
                )
                for it in group
                if it.batch
            }
            prefilling = [it for it in group if not it.batch]
            watching = asyncio.create_task(rates(list(counts.values()), WINDOW_TOGETHER))
            firsts = await self._prefill_until(watching, prefilling)
            found = dict(zip(counts, await watching, strict=True))
        await self._quiet()
        rate = {name: DecodeRate(seconds, 0.0) for name, seconds in firsts.items()} | found
        members = [
            Busy(
                model=it.seat.model,
                batch=it.batch,
                prompt=it.prompt,
                said=rate[it.seat.name].said,
                seconds=rate[it.seat.name].seconds,
            )
            for it in group
        ]
        self._rows.groups.append(EngineGroup(part="together", mps=self._mps, members=members))

    async def _prefill_until(
        self, over: asyncio.Task[list[DecodeRate]], prefilling: Sequence[GroupMember]
    ) -> dict[str, float]:
        """Median TTFT in seconds of prompts sent one after another, at least one per engine."""
        taken: dict[str, list[float]] = {it.seat.name: [] for it in prefilling}
        while prefilling:
            for it in prefilling:
                taken[it.seat.name].append(await self._streams.first_token(it.seat.name, it.prompt))
            if over.done():
                break
        return {name: statistics.median(seconds) for name, seconds in taken.items()}

    # states

    async def _only(self, seats: Sequence[WorkerSeat]) -> None:
        """Make exactly these models active, with no work in the background."""
        wanted = {seat.name for seat in seats}
        for name in sorted(self._active - wanted):
            await self._subject.evict(name)
        for name in sorted(wanted - self._active):
            await self._subject.command("activate", model=name)
        self._active = wanted
        await self._settled()

    async def _use(self, seat: WorkerSeat) -> None:
        """Activate a model and trigger all one-time work of its process."""
        await self._subject.command("activate", model=seat.name)
        self._active.add(seat.name)
        first = await self._streams.first_token(seat.name, PROMPT)
        await asyncio.sleep(REHEARSAL_BEGINS)
        rehearsed = any(worker.rehearsing for worker in await self._subject.workers())
        await self._settled()
        async with self._decoding(seat, [PROMPT] * BATCHES[-1]):
            await asyncio.sleep(WINDOW / 4)
        later = statistics.median([await self._first_token(seat, PROMPT) for _ in range(TIMES)])
        row = FirstUse(part=FIRST_USE, mps=self._mps, model=seat.model, first=first, later=later, rehearsed=rehearsed)
        self._rows.first_uses.append(row)

    async def _settled(self) -> None:
        await self._quiet()
        await asyncio.sleep(CAPTURES)
        await self._quiet()

    async def _quiet(self) -> None:
        """Wait until no worker serves requests, warms up or changes its state."""
        await self._subject.until_workers(
            lambda workers: all(it.state in RESTING and not it.running and not it.rehearsing for it in workers),
            "all workers are idle",
        )


def _words(group: Sequence[GroupMember]) -> str:
    return " + ".join(
        f"{it.seat.name} {f'decode {it.batch}' if it.batch else f'prompts of {it.prompt}'}" for it in group
    )
