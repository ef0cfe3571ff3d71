"""The phases of a worker, and which may follow which: `python -m scheduler.state.phases` prints them as a diagram."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Phase(StrEnum):
    """What a worker is doing. `TRANSITIONS` says what may come next, and why."""

    STARTING = "starting"
    """Its process starts, and warms up the engine."""
    BLANK = "blank"
    """Warm, without a model."""
    PREPARING = "preparing"
    """Chosen for a model. It is told to activate it once it has no other model's skeleton, and its device has the
    memory and the link free."""
    ACTIVATING = "activating"
    """Told to activate its model, and not ready yet."""
    ACTIVE = "active"
    """Serves its model."""
    DRAINING = "draining"
    """Finishes what it runs, and gets nothing new."""
    PARKING = "parking"
    """Gives back its model's weights and KV cache."""
    PARKED = "parked"
    """Keeps its model's skeleton: what makes the next activation of the same model faster."""
    BLANKING = "blanking"
    """Tears the skeleton down."""
    ISOLATED = "isolated"
    """Outside the pool, serving only requests that may have killed a worker: see `Isolation`."""


FREE = frozenset({Phase.BLANK, Phase.PARKED})
TAKEN = frozenset({Phase.PREPARING, Phase.ACTIVATING, Phase.ACTIVE})
"""Phases in which a model counts on its worker."""
SERVING = frozenset({Phase.ACTIVE, Phase.DRAINING})
"""Phases in which a worker may run requests, and takes a new KV limit."""
MAPPED = frozenset({Phase.PREPARING, Phase.ACTIVATING, Phase.ACTIVE, Phase.DRAINING, Phase.PARKING})
"""Phases in which a worker has its model's weights mapped, or is about to."""

_DIES = "its process dies"

TRANSITIONS: Mapping[Phase, Mapping[Phase, str]] = {
    Phase.STARTING: {
        Phase.BLANK: "warm",
        Phase.STARTING: _DIES,
        Phase.ISOLATED: "takes suspected requests",
    },
    Phase.BLANK: {
        Phase.BLANK: "reports again what it holds",
        Phase.PREPARING: "a model is to come",
        Phase.STARTING: "replaced, or its process dies",
    },
    Phase.PREPARING: {
        Phase.ACTIVATING: "memory and link are free",
        Phase.BLANK: "withdrawn",
        Phase.PARKED: "withdrawn, had the skeleton",
        Phase.BLANKING: "withdrawn, tears another one down",
        Phase.STARTING: _DIES,
    },
    Phase.ACTIVATING: {
        Phase.ACTIVE: "ready",
        Phase.BLANK: "failed",
        Phase.STARTING: _DIES,
    },
    Phase.ACTIVE: {
        Phase.DRAINING: "evicted while it runs requests",
        Phase.PARKING: "evicted while idle",
        Phase.STARTING: "its process dies, or it is to be isolated",
    },
    Phase.DRAINING: {
        Phase.ACTIVE: "nobody needs it any more",
        Phase.PARKING: "drained",
        Phase.STARTING: _DIES,
    },
    Phase.PARKING: {
        Phase.PARKED: "memory is back",
        Phase.STARTING: _DIES,
    },
    Phase.PARKED: {
        Phase.PREPARING: "a model is to come",
        Phase.BLANKING: "a blank worker is needed",
        Phase.STARTING: "its process dies, or it is to be isolated",
    },
    Phase.BLANKING: {
        Phase.BLANK: "torn down",
        Phase.STARTING: _DIES,
    },
    Phase.ISOLATED: {
        Phase.STARTING: "no suspected requests are left",
    },
}
"""What may follow each phase, and on what occasion."""


class IllegalTransition(AssertionError):
    """A worker was to enter a phase that cannot follow the one it is in: the pool and the scheduler disagree."""


def require_legal(before: Phase, after: Phase, worker: int) -> None:
    """
    Raises:
        IllegalTransition: `TRANSITIONS` does not have it.
    """
    if after not in TRANSITIONS[before]:
        raise IllegalTransition(f"worker {worker} cannot go from {before} to {after}")


def diagram() -> str:
    """The table as a Mermaid state diagram. Deaths are left out, but for a worker that starts: they lead to starting
    from everywhere.
    """
    lines = ["stateDiagram-v2", f"    [*] --> {Phase.STARTING}"]
    for before, following in TRANSITIONS.items():
        shown = {after: why for after, why in following.items() if why != _DIES or before is Phase.STARTING}
        lines += [f"    {before} --> {after}: {why}" for after, why in shown.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
