"""The driver: whoever carries actions out may feed events meanwhile, and their order is that in which they happened."""

from __future__ import annotations

import pytest

from scheduler.actions import AnyAction, Park, Stage
from scheduler.driver import Driver
from scheduler.events import AnyEvent, Staged, Tick

WORK: list[AnyAction] = [Stage("a", "asked for"), Park(0, "idle")]


class Log:
    """Decides `WORK` at a tick and nothing otherwise; what a carried out Stage leads to is fed back at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.driver = Driver(self._decide, self._carry_out)

    def _decide(self, event: AnyEvent, now: float) -> list[AnyAction]:
        self.lines.append(f"{type(event).__name__} at {now:g}")
        return WORK if isinstance(event, Tick) else []

    def _carry_out(self, action: AnyAction) -> None:
        self.lines.append(type(action).__name__)
        if isinstance(action, Stage):
            self.driver.feed(Staged(action.model, 1), 7.0)


def test_an_event_that_a_decision_causes_waits_for_the_rest_of_the_decisions() -> None:
    log = Log()
    log.driver.feed(Tick(), 5.0)
    assert log.lines == ["Tick at 5", "Stage", "Park", "Staged at 7"]


def test_after_a_failure_the_next_event_is_handled_like_any_other() -> None:
    handled: list[AnyEvent] = []

    def decide(event: AnyEvent, now: float) -> list[AnyAction]:
        handled.append(event)
        if len(handled) == 1:
            raise ValueError("a bug")
        return []

    driver = Driver(decide, lambda action: None)
    with pytest.raises(ValueError, match="a bug"):
        driver.feed(Tick(), 1.0)
    driver.feed(Staged("a", 1), 2.0)
    assert handled == [Tick(), Staged("a", 1)]
