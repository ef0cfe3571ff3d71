"""What an activation took, phase by phase, in two processes."""

from __future__ import annotations

import pytest

from enginepool.engines.phases import Phases


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def test_what_another_process_did_lies_between_two_phases_of_this_one(clock: Clock) -> None:
    phases = Phases()
    clock.now += 2
    phases.end("arguments")
    clock.now += 10
    phases.took({"model": 3.0, "copy": 4.0})
    phases.end("tokenizer")
    assert phases.seconds == {"arguments": 2, "model": 3, "copy": 4, "tokenizer": 3}


def test_who_hears_late_that_the_other_has_begun_has_waited_less_before(clock: Clock) -> None:
    phases = Phases()
    clock.now += 2
    phases.end("arguments")
    clock.now += 6
    phases.took({"model": 3.0, "copy": 4.0})
    phases.end("tokenizer")
    assert phases.seconds == {"arguments": 1, "model": 3, "copy": 4, "tokenizer": 0}
    assert sum(phases.seconds.values()) == clock.now - 100
