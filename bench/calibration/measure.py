"""Executes a calibration plan: starts all engines together, then takes the measurements one by one."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.calibration.measurements import (
    Alone,
    DecodePoint,
    Measurements,
    Member,
    PrefillPoint,
    RepeatedLoad,
    Together,
)
from bench.calibration.plan import ROOM_BESIDE, STEPS, CalibrationPlan, Decode, Prefill
from bench.calibration.plan import Member as Busy
from bench.calibration.subjects import COMMAND, EngineSeat, EngineSubject, at_once, subjects
from simulator.errors import StudyError
from simulator.progress import say

Rounds = Sequence[tuple[float, float]]
"""Begin and end of each round."""


@dataclass(frozen=True)
class MeasureStep:
    words: str
    seconds: float
    """Estimated duration, for showing the remaining time."""
    run: Callable[[], Awaitable[None]]


async def measure(
    plan: CalibrationPlan,
    folders: dict[str, Path],
    device: str,
    logs: Path,
    measured: Measurements,
    save: Callable[[], None],
    command: Sequence[str] = COMMAND,
) -> None:
    """Take all measurements into `measured`, calling `save` after each.

    Raises:
        StudyError: an engine cannot be started, has ended or does not answer.
        PoolError: packages for a GPU are missing.
    """
    seats = seats_of(plan, folders)
    say(f"starting {len(seats)} engines at once")
    began = time.perf_counter()
    async with subjects(seats, device, logs, command) as running:
        say(f"started after {time.perf_counter() - began:.0f} s")
        steps = _Run(plan, running, measured).steps()
        for place, step in enumerate(steps):
            left = sum(it.seconds for it in steps[place:])
            say(f"{place + 1} of {len(steps)}, about {left:.0f} s left: {step.words}")
            await step.run()
            save()
    say(f"measured after {time.perf_counter() - began:.0f} s")


def seats_of(plan: CalibrationPlan, folders: dict[str, Path]) -> list[EngineSeat]:
    return [
        EngineSeat(model, folders[model], number, min(plan.room, ROOM_BESIDE) if number else plan.room)
        for model, count in plan.engines.items()
        for number in range(count)
    ]


class _Run:
    def __init__(self, plan: CalibrationPlan, running: Sequence[EngineSubject], measured: Measurements) -> None:
        self._plan = plan
        self._running = running
        self._measured = measured
        self._loads = {load.name: load for load in plan.loads}

    def steps(self) -> list[MeasureStep]:
        plan = self._plan
        found = [MeasureStep("every load once", 10.0, self._warm_up)]
        found += [
            MeasureStep(f"{it.model}: a prompt of {it.tokens} tokens", 1 + it.tokens / 4096, partial(self._prefill, it))
            for it in plan.prefill
        ]
        found += [
            MeasureStep(
                f"{it.model}: decode, batch {it.batch}, prompts of {it.prompt}",
                1 + it.batch * it.prompt / 30_000,
                partial(self._decode, it),
            )
            for it in plan.decode
        ]
        busy = dict.fromkeys(one for pair in plan.pairs for one in pair)
        found += [MeasureStep(f"{_words([one])} alone", plan.pair_seconds, partial(self._alone, one)) for one in busy]
        for members, seconds in (
            *((pair, plan.pair_seconds) for pair in plan.pairs),
            *((group, plan.group_seconds) for group in plan.groups),
        ):
            found.append(MeasureStep(_words(members), seconds + 0.5, partial(self._together, members, seconds)))
        return found

    async def _warm_up(self) -> None:
        """Warm up all engines at once, so that none still compiles when several are measured together."""
        for load in self._plan.loads:
            await at_once(subject.ask(_command("measure", load, times=1)) for subject in self._running)

    async def _prefill(self, wanted: Prefill) -> None:
        (subject,) = self._seated([(wanted.model, "")])
        load = RepeatedLoad("", 1, wanted.tokens, 1)
        answer = await subject.ask(_command("measure", load, times=wanted.times))
        self._measured.prefill.append(PrefillPoint(wanted.model, wanted.tokens, answer["seconds"]))

    async def _decode(self, wanted: Decode) -> None:
        (subject,) = self._seated([(wanted.model, "")])
        load = RepeatedLoad("", wanted.batch, wanted.prompt, STEPS + 1)
        answer = await subject.ask(_command("measure", load, times=wanted.times, warm=wanted.warm))
        self._measured.decode.append(DecodePoint(wanted.model, wanted.batch, wanted.prompt, STEPS + 1, answer["steps"]))

    async def _alone(self, busy: Busy) -> None:
        (rounds,) = await self._repeat([busy], self._plan.pair_seconds)
        self._measured.alone.append(Alone(*busy, [end - begin for begin, end in rounds]))

    async def _together(self, members: Sequence[Busy], seconds: float) -> None:
        alone = {(it.model, it.load): statistics.median(it.seconds) for it in self._measured.alone}
        found = [
            Member(*busy, taken, statistics.median(taken) / alone[busy] if taken else None)
            for busy, taken in zip(members, whole(await self._repeat(members, seconds)), strict=True)
        ]
        self._measured.together.append(Together(found))

    async def _repeat(self, members: Sequence[Busy], seconds: float) -> list[Rounds]:
        until = time.time() + seconds
        asked = zip(self._seated(members), members, strict=True)
        answers = await at_once(
            subject.ask(_command("repeat", self._loads[load], until=until)) for subject, (_, load) in asked
        )
        for answer, (model, load) in zip(answers, members, strict=True):
            if not answer["rounds"]:
                raise StudyError(f"{model}, {load}: not one round began within {seconds:g} s")
        return [answer["rounds"] for answer in answers]

    def _seated(self, members: Sequence[Busy]) -> list[EngineSubject]:
        """Assigns an engine to each member: the n-th engine of a model to its n-th member."""
        taken: Counter[str] = Counter()
        found = []
        for model, _ in members:
            engines = [subject for subject in self._running if subject.seat.model == model]
            found.append(engines[taken[model]])
            taken[model] += 1
        return found


def whole(rounds: Sequence[Rounds]) -> list[list[float]]:
    """Durations of each engine's rounds that lie within the time in which all engines were busy."""
    begin = max(its[0][0] for its in rounds)
    end = min(its[-1][1] for its in rounds)
    return [[after - before for before, after in its if begin <= before and after <= end] for its in rounds]


def _command(do: str, load: RepeatedLoad, **more: object) -> dict[str, object]:
    return {"do": do, "batch": load.batch, "prompt": load.prompt, "tokens": load.tokens, **more}


def _words(members: Sequence[Busy]) -> str:
    return " + ".join(
        f"{f'{count} x ' if count > 1 else ''}{model} {load}" for (model, load), count in Counter(members).items()
    )
