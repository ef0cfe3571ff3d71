"""The loop around a scheduler: an event goes in, its decisions are carried out, and what comes of them goes in next.

The gateway, the simulator and the tests all drive their scheduler with it, so that none of them decides in an order of
its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from scheduler.actions import AnyAction
from scheduler.events import AnyEvent

Decide = Callable[[AnyEvent, float], Sequence[AnyAction]]
"""`Scheduler.handle`, or what stands before it."""
CarryOut = Callable[[AnyAction], None]


class Driver:
    """`carry_out` may feed events itself: they wait until every action of the event under way has been carried out."""

    def __init__(self, decide: Decide, carry_out: CarryOut) -> None:
        self._decide = decide
        self._carry_out = carry_out
        self._inbox: deque[tuple[AnyEvent, float]] = deque()
        self._busy = False

    def feed(self, event: AnyEvent, now: float) -> None:
        """Have the scheduler decide on what happened at `now` (monotonic seconds), at once unless it is busy."""
        self._inbox.append((event, now))
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                for action in self._decide(*self._inbox.popleft()):
                    self._carry_out(action)
        finally:
            self._busy = False
