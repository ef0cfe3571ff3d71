"""What a policy is: it reads the state and says who gets a worker, who is evicted, whose weights are in host memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from scheduler.actions import Decision
from scheduler.state import State


class Policy(Protocol):
    def plan(self, state: State, now: float) -> Iterator[Decision]:
        """Decide, one by one. The scheduler applies each decision to `state` before it asks for the next.

        Called after every event that may change who should have a worker, and at each tick.
        """
        ...
