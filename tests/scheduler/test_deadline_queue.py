"""The queue of one model: earliest deadline first, however requests come and go."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.state.deadline_queue import DeadlineQueue


def drained(queue: DeadlineQueue) -> list[int]:
    return [queue.pop() for _ in range(len(queue))]


def test_the_earliest_deadline_comes_first() -> None:
    queue = DeadlineQueue()
    for request, deadline in ((1, 30.0), (2, 10.0), (3, 20.0)):
        queue.push(request, deadline)
    assert queue.first_deadline() == 10.0
    assert drained(queue) == [2, 3, 1]


def test_of_equal_deadlines_the_first_to_come_is_first() -> None:
    queue = DeadlineQueue()
    for request in (1, 2, 3):
        queue.push(request, 5.0)
    assert drained(queue) == [1, 2, 3]


def test_a_removed_request_is_forgotten() -> None:
    queue = DeadlineQueue()
    queue.push(1, 10.0)
    queue.push(2, 20.0)
    queue.remove(1)
    assert 1 not in queue
    assert queue.first_deadline() == 20.0
    assert drained(queue) == [2]


def test_removing_a_stranger_is_no_error() -> None:
    queue = DeadlineQueue()
    queue.push(1, 10.0)
    queue.remove(7)
    assert list(queue) == [1]


def test_an_empty_queue_has_no_deadline_and_nothing_to_pop() -> None:
    queue = DeadlineQueue()
    queue.push(1, 10.0)
    queue.remove(1)
    assert queue.first_deadline() is None
    with pytest.raises(IndexError):
        queue.pop()


def test_removed_requests_do_not_pile_up() -> None:
    queue = DeadlineQueue()
    queue.push(0, 0.0)
    for request in range(1, 10_000):
        queue.push(request, float(request))
        queue.remove(request)
    assert len(queue._heap) < 200
    assert drained(queue) == [0]


STEPS = st.tuples(st.sampled_from(["push", "remove", "pop"]), st.integers(0, 8), st.integers(0, 4))


@given(st.lists(STEPS, max_size=80))
def test_it_behaves_like_a_sorted_list(steps: list[tuple[str, int, int]]) -> None:
    queue, waiting = DeadlineQueue(), dict[int, float]()
    for step, request, deadline in steps:
        if step == "push" and request not in waiting:
            queue.push(request, float(deadline))
            waiting[request] = float(deadline)
        elif step == "remove":
            queue.remove(request)
            waiting.pop(request, None)
        elif step == "pop" and waiting:
            first = min(waiting, key=lambda number: (waiting[number], number))
            assert queue.pop() == first
            del waiting[first]
        assert sorted(queue) == sorted(waiting)
        assert len(queue) == len(waiting)
        assert queue.first_deadline() == min(waiting.values(), default=None)
