"""What is learned from one observation after another: sums over a window, averages of a level, lines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.learned.averages import BUCKETS, Level, Line, Rate, smoothed

LENGTH = 12.0
"""Of a window in seconds: whole buckets, and sums that floats add up exactly."""
STEPS = st.lists(st.tuples(st.integers(0, 40).map(lambda quarters: quarters / 4), st.integers(0, 9)), max_size=40)
"""Seconds since the one before, and how much."""


# --- a rate ---------------------------------------------------------------------------------------------------


def test_a_rate_is_what_came_in_the_window_by_its_length() -> None:
    rate = Rate(60.0)
    for second in range(1000, 1200):
        rate.add(3.0, second)
    assert rate.per_second(1199) == pytest.approx(3.0, rel=1 / BUCKETS)


def test_before_the_first_there_is_no_rate() -> None:
    assert Rate(60.0).per_second(1000) == 0.0


def test_a_window_that_has_not_passed_yet_counts_as_long_as_it_is() -> None:
    rate = Rate(60.0)
    for second in range(10):
        rate.add(2.0, 1000 + second)
    assert rate.per_second(1010) == 2.0


def test_a_first_burst_counts_as_one_second_at_least() -> None:
    rate = Rate(60.0)
    for _ in range(5):
        rate.add(1.0, 1000.001)
    assert rate.per_second(1000.001) == 5.0


def test_what_is_older_than_the_window_is_forgotten() -> None:
    rate = Rate(60.0)
    rate.add(100.0, 1000)
    assert rate.per_second(1050) == 2.0
    assert rate.per_second(1060) == 0.0
    rate.add(6.0, 5000)
    assert rate.per_second(5000) == 0.1, "what came in a minute, not since the beginning"


@given(STEPS, st.integers(0, 80).map(lambda quarters: quarters / 4))
def test_a_rate_is_the_naive_sum_but_for_a_bucket_of_the_window(steps: list[tuple[float, int]], later: float) -> None:
    rate, now = Rate(LENGTH), 1000.0
    began, seen = None, []
    for pause, amount in steps:
        now += pause
        began = now if began is None else began
        rate.add(amount, now)
        seen.append((now, amount))
    now += later
    passed = min(LENGTH, max(1.0, now - (began or 0.0)))
    whole = sum(amount for at, amount in seen if at > now - LENGTH)
    certain = sum(amount for at, amount in seen if at > now - LENGTH * (1 - 1 / BUCKETS))
    assert certain / passed <= rate.per_second(now) <= whole / passed


# --- a level --------------------------------------------------------------------------------------------------


def test_half_of_an_average_is_what_came_in_the_last_half_life() -> None:
    level = Level(5.0)
    level.set(1.0, 1000.0)
    assert level.at(1000.0) == 0.0
    assert level.at(1005.0) == 0.5
    assert level.at(1010.0) == 0.75
    level.set(0.0, 1010.0)
    assert level.at(1015.0) == 0.375


def test_an_average_does_not_depend_on_how_often_it_is_set_to_what_it_is() -> None:
    once, often = Level(5.0), Level(5.0)
    for level in (once, often):
        level.set(1.0, 1000.0)
    for second in range(1, 10):
        often.set(1.0, 1000.0 + second)
    assert often.at(1012.0) == pytest.approx(once.at(1012.0))
    assert often.area(1012.0) == once.area(1012.0) == 12.0


@given(STEPS, st.integers(0, 80).map(lambda quarters: quarters / 4))
def test_average_and_area_are_the_naive_integrals(steps: list[tuple[float, int]], later: float) -> None:
    half, level, now = 5.0, Level(5.0), 1000.0
    pieces: list[tuple[float, float, int]] = []
    for pause, height in steps:
        pieces.append((now, now + pause, int(level.level)))
        now += pause
        level.set(height, now)
    pieces.append((now, now + later, int(level.level)))
    now += later
    assert level.area(now) == sum((end - start) * height for start, end, height in pieces)
    weighed = sum(
        height * (0.5 ** ((now - end) / half) - 0.5 ** ((now - start) / half)) for start, end, height in pieces
    )
    assert level.at(now) == pytest.approx(weighed, abs=1e-9)


# --- a line ---------------------------------------------------------------------------------------------------


def line_through(*points: tuple[float, float]) -> Line:
    line = Line()
    for x, y in points:
        line.see(x, y)
    return line


def test_a_line_that_has_seen_nothing_expects_nothing() -> None:
    assert not Line().known
    assert Line().at(100.0) == 0.0


@given(
    st.integers(0, 1000).map(lambda thousandth: thousandth / 1000),
    st.integers(0, 1000).map(lambda millionth: millionth / 1e6),
    st.lists(st.integers(1, 8192), min_size=2, max_size=30, unique=True),
)
def test_a_line_is_recovered_from_any_of_its_points(begin: float, slope: float, xs: list[int]) -> None:
    line = line_through(*((x, begin + slope * x) for x in xs))
    for x in (0, 1, 100, 8192):
        assert line.at(x) == pytest.approx(begin + slope * x, rel=1e-5, abs=1e-5)


def test_a_line_of_which_one_x_was_seen_goes_through_the_origin() -> None:
    line = line_through((100.0, 0.5), (100.0, 0.7))
    assert line.at(100.0) == pytest.approx(0.6, rel=0.05)
    assert line.at(200.0) == pytest.approx(2 * line.at(100.0))
    assert line.at(0.0) == 0.0


def test_what_always_costs_the_same_at_nothing_is_a_constant() -> None:
    line = line_through((0.0, 0.5), (0.0, 0.5))
    assert line.at(0.0) == line.at(1e9) == 0.5


def test_more_is_never_expected_to_take_less() -> None:
    line = line_through((100.0, 5.0), (200.0, 1.0))
    assert line.at(0.0) == line.at(1000.0) == pytest.approx(3.0, rel=0.05)


def test_nothing_is_never_expected_to_take_less_than_no_time() -> None:
    line = line_through((100.0, 1.0), (200.0, 5.0))
    assert line.at(0.0) == 0.0
    assert line.at(300.0) > line.at(200.0) > line.at(100.0) > 0.0


@given(st.lists(st.tuples(st.integers(0, 8192), st.integers(0, 5000)), min_size=1, max_size=60))
def test_neither_coefficient_is_ever_negative(points: list[tuple[int, int]]) -> None:
    begin, slope = line_through(*((x, y / 1000) for x, y in points)).coefficients()
    assert begin >= 0.0
    assert slope >= 0.0


def test_what_was_seen_later_outweighs_what_was_seen_before() -> None:
    line = line_through(*((x, float(x)) for x in range(200)))
    for x in range(200):
        line.see(x, 10.0 + 3.0 * x)
    assert line.at(100.0) == pytest.approx(310.0, rel=0.05)


def test_a_moving_average_begins_with_the_first_value() -> None:
    assert smoothed(0.0, 8.0, 0.25) == 8.0
    assert smoothed(8.0, 4.0, 0.25) == 7.0
