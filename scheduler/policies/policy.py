"""What a policy is: it reads the state and says who gets a worker, who is evicted, whose weights are in host memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from scheduler.actions import Decision
from scheduler.state.entities import Request, Worker
from scheduler.state.state import State


class Policy(Protocol):
    elastic: bool
    """Whether the KV cache of a device goes to those of its models that have use for it; else in equal parts."""

    by_admission: bool
    """Whether a device's requests are admitted by what can still be met; else each model's go out at once, in order."""

    def prepare(self, state: State) -> None:
        """Note in the state, before the first event, what the policy has to say of models."""
        ...

    def route(self, state: State, workers: Sequence[Worker], request: Request, now: float) -> Worker:
        """Which of a model's workers takes a request; all of them have room."""
        ...

    def plan(self, state: State, now: float) -> Iterator[Decision]:
        """Decide, one by one. The scheduler applies each decision to `state` before it asks for the next.

        Called after every event that may change who should have a worker, and at each tick.
        """
        ...
