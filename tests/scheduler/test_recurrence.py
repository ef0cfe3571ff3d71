"""Demand that comes back at regular times is expected, and its model is there when it does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.actions import Activate, Park, Stage
from scheduler.learned.recurrence import AHEAD, QUIET, Recurrence
from tests.rig.fake_pool import GIB, Bench, only

PERIOD = 200.0


def spells(*begins: float, requests: int = 3) -> Recurrence:
    """Of some requests each, a second apart."""
    seen = Recurrence()
    for begin in begins:
        for second in range(requests):
            seen.arrived(begin + second)
    return seen


def test_three_spells_at_equal_distance_make_a_fourth_expected() -> None:
    seen = spells(0, 200, 400)
    assert seen.expected_in(590) == 10
    assert seen.expected_in(610) == -10


def test_two_do_not_nor_do_three_at_different_distances() -> None:
    assert spells(0, 200).expected_in(400) is None
    assert spells(0, 200, 300).expected_in(400) is None


def test_it_is_due_around_that_time_only_and_not_while_it_has_come() -> None:
    seen = spells(0, 200, 400)
    assert seen.expected_in(600 - AHEAD - 1) is None
    assert seen.expected_in(600 + AHEAD + 1) is None
    seen.arrived(601)
    assert seen.expected_in(602) is None


def test_requests_without_a_pause_are_one_spell() -> None:
    assert spells(0, requests=1000).expected_in(1000) is None


@given(st.floats(QUIET * 2, 1e5), st.lists(st.floats(-0.02, 0.02), min_size=3, max_size=10))
def test_a_period_is_learned_from_beginnings_that_are_a_little_early_or_late(period: float, off: list[float]) -> None:
    seen = spells(*((number + late) * period for number, late in enumerate(off)), requests=1)
    assert seen.alike == len(off) - 1
    assert abs(seen.period - period) <= 0.1 * period


# in the policy


def recurring(**fields: int) -> Bench:
    """Memory for two of three models; c came three times, 200 s apart, and a and b in between, at odd times."""
    names = {"a": 8 * GIB, "b": 8 * GIB, "c": 8 * GIB}
    bench = Bench(
        names, weights=names, memory=24 * GIB, workers=3, policy="prism", **{"host_memory": 99 * GIB} | fields
    )
    begin = bench.now
    for spell, odd in enumerate((50, 90, 65)):
        bench.now = begin + spell * PERIOD
        bench.finish(bench.serve("c"))
        for other in ("a", "b"):
            bench.now += odd
            bench.finish(bench.serve(other))
        assert sorted(bench.active().values()) == ["a", "b"]
    bench.now = begin + 3 * PERIOD - AHEAD - 10
    bench.wait(0)
    bench.settle()
    bench.clear()
    return bench


def test_a_model_is_active_before_its_demand_comes_back() -> None:
    bench = recurring()
    bench.wait(5)
    bench.settle()
    assert "c" not in bench.active().values()
    bench.wait(10)
    bench.settle()
    assert "c" in bench.active().values()
    assert only(Activate, bench.said)[0].reason == "its demand is expected in 15 s"
    assert only(Park, bench.said)[0].reason.endswith("c is due")


def test_nobody_who_is_in_use_makes_way_for_it() -> None:
    bench = recurring()
    running = [bench.serve("a"), bench.serve("b")]
    bench.wait(15)
    bench.settle()
    assert sorted(bench.active().values()) == ["a", "b"]
    bench.finish(*running)
    bench.wait(1)
    bench.settle()
    assert sorted(bench.active().values()) == ["a", "b"], "they were used a moment ago"


def test_it_is_brought_into_host_memory_if_there_is_room() -> None:
    bench = recurring(host_memory=16 * GIB)
    bench.wait(15)
    assert only(Stage, bench.said) == [], "there is not: a and b are there"
    roomy = recurring()
    assert roomy.staged() == {"a", "b", "c"}


def test_it_may_leave_again_when_it_did_not_come() -> None:
    bench = recurring()
    bench.wait(15)
    bench.settle()
    assert "c" in bench.active().values()
    bench.now += 100
    for name in ("a", "b"):
        bench.finish(bench.serve(name))
    assert sorted(bench.active().values()) == ["a", "b"]
