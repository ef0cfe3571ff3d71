"""What is being done about the event at hand: the parts of the scheduler share it."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.actions import AnyAction


@dataclass(slots=True)
class Reaction:
    now: float = 0.0
    """When the event happened; monotonic seconds."""
    actions: list[AnyAction] = field(default_factory=list)
    """What is to be done, in order."""

    def begin(self, now: float) -> None:
        """Another event has come. Whoever has the actions of the last one keeps them."""
        self.now, self.actions = now, []
