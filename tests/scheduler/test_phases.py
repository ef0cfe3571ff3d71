"""A worker's phases: what may follow what, and who sees to it."""

from __future__ import annotations

import pytest

from scheduler.state.phases import TRANSITIONS, IllegalTransition, Phase, diagram, require_legal
from tests.rig.fake_pool import Bench


def test_every_phase_can_be_entered_and_left() -> None:
    entered = {after for following in TRANSITIONS.values() for after in following}

    assert set(TRANSITIONS) == set(Phase) == entered
    assert all(set(following) - {phase} for phase, following in TRANSITIONS.items())


def test_a_worker_may_die_in_any_phase() -> None:
    assert all(Phase.STARTING in following for following in TRANSITIONS.values())


def test_what_the_table_has_not_is_refused_and_says_which_worker() -> None:
    require_legal(Phase.ACTIVE, Phase.DRAINING, 3)

    with pytest.raises(IllegalTransition, match="worker 3 cannot go from blank to active"):
        require_legal(Phase.BLANK, Phase.ACTIVE, 3)


def test_a_worker_that_cannot_enter_a_phase_stays_in_its_own() -> None:
    state = Bench(["a"]).scheduler.state
    (worker,) = state.workers

    with pytest.raises(IllegalTransition):
        state.enter(worker.replica, Phase.PARKING, 1001.0)

    assert (worker.phase, worker.since) == (Phase.BLANK, 1000.0)
    assert state.numbers_in(Phase.BLANK) == {0}


def test_the_diagram_has_every_transition_but_deaths() -> None:
    lines = diagram().splitlines()

    assert "    active --> draining: evicted while it runs requests" in lines
    assert "    parked --> starting: its process dies, or it is to be isolated" in lines
    assert not [line for line in lines if line.startswith("    draining --> starting")]
