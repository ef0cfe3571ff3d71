"""Gives a new scheduler the events of a recorded run at their times, and compares what it decides."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from scheduler.actions import AnyAction
from scheduler.events import AnyEvent
from scheduler.replay.recorded import Step
from scheduler.scheduler import Scheduler


class Difference(Struct, frozen=True):
    """The first event after which something else was decided."""

    line: int
    at: float
    """Monotonic seconds."""
    event: AnyEvent
    recorded: list[AnyAction] | None
    """None: the scheduler raised an error."""
    replayed: list[AnyAction] | None
    error: str
    """What the scheduler raised in the replay; empty if nothing."""


class Comparison(Struct, frozen=True):
    events: int
    """Those after which the same was decided."""
    actions: int
    """Those that agree, in their order."""
    difference: Difference | None


def replay(scheduler: Scheduler, steps: Iterable[tuple[int, Step]]) -> Comparison:
    """Compare up to the first difference: from there on the two runs have little to do with each other.

    `scheduler` is new, each step comes with the number of its line.
    """
    events = actions = 0
    for line, step in steps:
        replayed, error = _handle(scheduler, step)
        if replayed != step.actions:
            actions += _agreeing(step.actions or [], replayed or [])
            difference = Difference(line, step.at, step.event, step.actions, replayed, error)
            return Comparison(events, actions, difference)
        events += 1
        actions += len(replayed or [])
    return Comparison(events, actions, None)


def _handle(scheduler: Scheduler, step: Step) -> tuple[list[AnyAction] | None, str]:
    try:
        return scheduler.handle(step.event, step.at), ""
    except Exception as error:  # Whatever it is: a scheduler that fails is what is being looked for.
        return None, f"{type(error).__name__}: {error}"


def _agreeing(recorded: list[AnyAction], replayed: list[AnyAction]) -> int:
    """How many actions are the same before the first that is not."""
    same = 0
    for one, other in zip(recorded, replayed, strict=False):
        if one != other:
            break
        same += 1
    return same
