"""The arithmetic of local admission: as many deadlines as possible are met, and nobody is forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.dispatch.moore_hodgson import AdmissionQueue, Job, on_time


def run_in_time(jobs: Iterable[Job], start: float) -> bool:
    """Whether all of `jobs` end by their deadlines, one after the other in the order of their deadlines."""
    free = start
    for job in sorted(jobs, key=lambda job: (job.deadline, job.request)):
        free += job.cost
        if free > job.deadline:
            return False
    return True


def best(jobs: Sequence[Job], start: float, beside: Sequence[Job] = ()) -> int:
    """The largest number of `jobs` that can end in time together with all of `beside`, by trying every subset."""
    return next(
        size
        for size in range(len(jobs), -1, -1)
        if any(run_in_time([*chosen, *beside], start) for chosen in combinations(jobs, size))
    )


def jobs_of(priorities: st.SearchStrategy[int], most: int) -> st.SearchStrategy[list[Job]]:
    """Whole seconds, which floats add up exactly."""
    figures = st.tuples(st.integers(0, 24), st.integers(0, 8), priorities)
    return st.lists(figures, max_size=most).map(
        lambda rows: [Job(request, float(due), float(cost), level) for request, (due, cost, level) in enumerate(rows)]
    )


STARTS = st.integers(0, 6).map(float)


def test_what_fits_runs_in_deadline_order() -> None:
    plan = on_time([Job(1, 9.0, 3.0), Job(2, 3.0, 3.0), Job(3, 6.0, 3.0)], 0.0)
    assert plan == ([2, 3, 1], [])


def test_the_longest_is_dropped_when_one_would_be_late() -> None:
    plan = on_time([Job(1, 4.0, 1.0), Job(2, 5.0, 4.0), Job(3, 6.0, 2.0), Job(4, 8.0, 3.0)], 0.0)
    assert plan == ([1, 3, 4], [2])


def test_a_job_may_end_exactly_at_its_deadline() -> None:
    assert on_time([Job(1, 0.3, 0.1), Job(2, 0.3, 0.2)], 0.0).kept == [1, 2]
    assert on_time([Job(1, 0.3, 0.1), Job(2, 0.3, 0.2)], 0.000_000_001).kept == [1]


def test_of_equal_jobs_those_with_the_earlier_deadline_are_kept() -> None:
    assert on_time([Job(request, 2.0, 1.0) for request in (4, 3, 2, 1)], 0.0) == ([1, 2], [3, 4])
    assert on_time([Job(1, 1.2, 1.0), Job(2, 1.1, 1.0)], 0.0) == ([2], [1])


def test_the_least_important_is_dropped_however_short() -> None:
    assert on_time([Job(1, 3.0, 3.0, priority=1), Job(2, 3.0, 1.0)], 0.0) == ([1], [2])


def test_the_less_important_is_not_dropped_for_one_that_is_late_anyway() -> None:
    jobs = [Job(1, 5.0, 5.0, priority=1), Job(2, 6.0, 1.0), Job(3, 6.0, 3.0, priority=1)]
    assert on_time(jobs, 0.0) == ([2, 3], [1])


@given(jobs_of(st.just(0), 9), STARTS)
def test_no_set_of_jobs_that_end_in_time_is_larger(jobs: list[Job], start: float) -> None:
    assert len(on_time(jobs, start).kept) == best(jobs, start)


@given(jobs_of(st.integers(0, 2), 40), STARTS)
def test_what_is_kept_ends_in_time_and_the_rest_is_late(jobs: list[Job], start: float) -> None:
    kept, late = on_time(jobs, start)
    in_order = [job.request for job in sorted(jobs, key=lambda job: (job.deadline, job.request))]
    assert run_in_time([jobs[request] for request in kept], start)
    assert kept == [request for request in in_order if request in kept]
    assert late == [request for request in in_order if request not in kept]


@given(jobs_of(st.integers(0, 2), 9), STARTS)
def test_each_level_keeps_the_most_that_fit_beside_those_above(jobs: list[Job], start: float) -> None:
    kept = [jobs[request] for request in on_time(jobs, start).kept]
    for level in range(3):
        above = [job for job in kept if job.priority > level]
        most = best([job for job in jobs if job.priority == level], start, above)
        assert sum(job.priority == level for job in kept) == most


@given(jobs_of(st.integers(0, 2), 20), STARTS)
def test_nobody_is_dropped_for_the_less_important(jobs: list[Job], start: float) -> None:
    kept = on_time(jobs, start).kept
    for level in (1, 2):
        alone = on_time([job for job in jobs if job.priority >= level], start).kept
        assert alone == [request for request in kept if jobs[request].priority >= level]


@given(jobs_of(st.integers(0, 2), 20), STARTS)
def test_nobody_who_was_dropped_would_fit(jobs: list[Job], start: float) -> None:
    kept, late = on_time(jobs, start)
    for request in late:
        assert not run_in_time([jobs[other] for other in [*kept, request]], start)


@given(jobs_of(st.integers(0, 2), 20), STARTS)
def test_a_plan_that_is_carried_out_does_not_change(jobs: list[Job], start: float) -> None:
    planned, late = on_time(jobs, start)
    for done, request in enumerate(planned):
        start += jobs[request].cost
        left = [jobs[other] for other in [*planned[done + 1 :], *late]]
        assert on_time(left, start).kept == planned[done + 1 :]


def test_an_empty_queue_has_no_first() -> None:
    queue = AdmissionQueue(patience=1.0)
    assert queue.first(0.0) is None
    queue.add(1, deadline=5.0, cost=1.0)
    queue.remove(1)
    queue.remove(1)
    assert queue.first(0.0) is None
    assert len(queue) == 0


def test_the_earliest_deadline_that_can_be_met_goes_first() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=2.0, cost=3.0)
    queue.add(2, deadline=4.0, cost=1.0)
    queue.add(3, deadline=5.0, cost=1.0)
    assert queue.first(0.0) == 2


def test_a_long_request_steps_back_for_several_short_ones_and_returns_when_they_are_gone() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=5.0, cost=4.0)
    assert queue.first(0.0) == 1
    queue.add(2, deadline=6.0, cost=2.0)
    queue.add(3, deadline=6.0, cost=2.0)
    assert queue.first(0.0) == 2
    queue.remove(3)
    assert queue.first(0.0) == 1


def test_a_request_becomes_late_by_waiting() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=5.0, cost=2.0)
    queue.add(2, deadline=9.0, cost=1.0)
    assert queue.first(3.0) == 1
    assert queue.first(3.1) == 2


def test_who_leaves_from_behind_makes_no_room_in_front() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=10.0, cost=6.0)
    queue.add(2, deadline=10.0, cost=4.0)
    queue.add(3, deadline=100.0, cost=50.0)
    assert queue.first(0.0) == 1
    queue.remove(3)
    assert queue.first(1.0) == 2


def test_when_all_are_late_the_earliest_deadline_goes_first() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=5.0, cost=1.0)
    queue.add(2, deadline=4.0, cost=1.0)
    assert queue.first(8.0) == 2


def test_who_is_past_the_patience_goes_before_everything() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=5.0, cost=1.0)
    queue.add(2, deadline=30.0, cost=1.0, priority=5)
    assert queue.first(15.0) == 2
    assert queue.first(15.1) == 1


def test_a_request_that_is_added_again_has_its_new_deadline() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=5.0, cost=1.0)
    queue.add(2, deadline=6.0, cost=1.0)
    queue.add(1, deadline=7.0, cost=1.0)
    assert len(queue) == 2
    assert queue.first(0.0) == 2


def test_time_does_not_go_back() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(1, deadline=5.0, cost=1.0)
    queue.add(2, deadline=9.0, cost=1.0)
    assert queue.first(6.0) == 2
    assert queue.first(0.0) == 2


def test_removed_requests_do_not_pile_up() -> None:
    queue = AdmissionQueue(patience=10.0)
    queue.add(0, deadline=1.0, cost=0.1)
    for request in range(1, 5_000):
        queue.add(request, deadline=1e6 + request, cost=1.0)
        queue.remove(request)
    assert len(queue._closing) < 200


def first_from_scratch(waiting: Iterable[Job], now: float, patience: float) -> int | None:
    jobs = sorted(waiting, key=lambda job: (job.deadline, job.request))
    overdue = [job.request for job in jobs if now - job.deadline > patience]
    kept, late = on_time(jobs, now)
    return next(iter([*overdue, *kept, *late]), None)


STEPS = st.one_of(
    st.tuples(st.just("add"), st.integers(0, 30), st.integers(0, 9)),
    st.tuples(st.just("remove"), st.integers(0, 15), st.just(0)),
    st.tuples(st.just("first"), st.sampled_from([0, 0, 1, 2, 5]), st.just(0)),
    st.tuples(st.just("serve"), st.integers(-2, 2), st.just(0)),
)


def follow(steps: Sequence[tuple[str, int, int]], levels: int, patience: float) -> None:
    """Carry `steps` out and compare after each; `serve` takes who is first, a little faster or slower than expected."""
    queue, waiting, now, request = AdmissionQueue(patience), dict[int, Job](), 0.0, 0
    for step, figure, cost in steps:
        if step == "add":
            request += 1
            waiting[request] = Job(request, now + figure, float(cost), (figure + cost) % levels)
            queue.add(*waiting[request])
        elif step == "remove":
            queue.remove(request - figure)
            waiting.pop(request - figure, None)
        elif step == "first":
            now += figure
        elif (served := queue.first(now)) is not None:
            now += max(0.0, waiting.pop(served).cost + figure)
            queue.remove(served)
        assert queue.first(now) == first_from_scratch(waiting.values(), now, patience)
        assert len(queue) == len(waiting)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=60))
def test_the_queue_is_as_good_as_a_new_plan(steps: list[tuple[str, int, int]]) -> None:
    follow(steps, levels=1, patience=12.0)


@settings(max_examples=300)
@given(st.lists(STEPS, max_size=60))
def test_the_queue_is_as_good_as_a_new_plan_with_priorities(steps: list[tuple[str, int, int]]) -> None:
    follow(steps, levels=3, patience=12.0)


@settings(max_examples=40)
@given(st.randoms(use_true_random=False), st.sampled_from([1, 3]), st.sampled_from([2, 6, 20]))
def test_the_same_for_long_queues(random: Random, levels: int, load: int) -> None:
    """Many are waiting all the time, and up to half of them in vain."""
    steps: list[tuple[str, int, int]] = []
    for _ in range(60):
        steps += [("add", random.randrange(load * 10), random.randrange(10)) for _ in range(random.randrange(4))]
        steps.append(random.choice([("serve", random.randint(-1, 1), 0), ("remove", random.randrange(20), 0)]))
    follow(steps, levels, patience=40.0)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=15))
def test_nobody_starves(rows: list[tuple[int, int, int]]) -> None:
    """Newcomers that fit and are more important never end, and yet all who waited before them are served."""
    patience, now = 5.0, 0.0
    queue, served = AdmissionQueue(patience), list[int]()
    for request, (deadline, cost, priority) in enumerate(rows):
        queue.add(request, float(deadline), float(cost), priority)
    bound = 12.0 + patience + sum(cost for _, cost, _ in rows) + 1.0
    while now <= bound:
        queue.add(1000 + len(served), now + 1.0, 1.0, priority=3)
        first = queue.first(now)
        assert first is not None
        queue.remove(first)
        served.append(first)
        now += 1.0 if first >= 1000 else rows[first][1]
    assert set(served) >= set(range(len(rows)))
