"""What the scheduler makes of a GPU that fails with all the workers that share it by MPS."""

from __future__ import annotations

from typing import Any

import pytest

from scheduler.actions import Activate, Dispatch, Park, Recycle
from scheduler.events import Aborted, ActivationFailed, DeviceFault, FirstToken, WorkerBlank
from tests.rig.fake_pool import GIB, Bench, only

GPU, OTHER = "cuda:0", "cuda:1"


def bench(models: str = "abcd", **fields: Any) -> Bench:
    """Two GPUs with two workers each, of 20 GiB each; a model has 4 GiB."""
    given = {"workers": 2, "devices": (GPU, OTHER), "weights": dict.fromkeys(models, 4 * GIB), "memory": 20 * GIB}
    return Bench(models, host_memory=100 * GIB, **{**given, **fields})


def fail(pool: Bench, *, suspected: bool = True, workers: tuple[int, ...] = (0, 1)) -> None:
    pool.clear()
    pool.pending = [action for action in pool.pending if getattr(action, "worker", None) not in workers]
    pool.tell(DeviceFault(GPU, workers, "the GPU failed under it", suspected))


def on_gpu(pool: Bench, *models: str) -> list[int]:
    """A request of each model, running on the GPU that is going to fail, without a byte."""
    for model in models:
        pool.activate(model, len(pool.active()))
        pool.settle()
    return [pool.serve(model) for model in models]


def start(pool: Bench, worker: int) -> None:
    """The process of an isolated worker is up."""
    pool.take(Recycle)
    pool.tell(WorkerBlank(worker, GIB))


# what becomes of requests


def test_streams_of_the_gpu_end_and_those_of_others_go_on() -> None:
    pool = bench()
    first, _ = on_gpu(pool, "a", "b")
    elsewhere = pool.serve("c")
    for number in (first, elsewhere):
        pool.tell(FirstToken(number))
    fail(pool)
    assert pool.aborted() == [first]
    assert pool.on(elsewhere) == 2


def test_a_request_that_had_nothing_to_do_with_it_is_served_again_however_often() -> None:
    """Such as when the daemon itself has ended."""
    pool = bench()
    (number,) = on_gpu(pool, "a")
    for _ in range(4):
        worker = pool.on(number)
        assert worker is not None
        fail(pool, suspected=False, workers=(worker,))
        assert pool.waits(number)
        pool.tell(WorkerBlank(worker, GIB))
        pool.settle()
        assert pool.on(number) is not None
    assert pool.refused() == {}


def test_who_only_waited_is_served_by_the_pool() -> None:
    pool = bench(max_running=1)
    running, waiting = on_gpu(pool, "a")[0], pool.ask("a")
    assert pool.waits(waiting)
    fail(pool)
    pool.settle(but=Recycle)
    assert pool.on(waiting) in (2, 3)
    assert pool.on(running) is None


# isolation


def test_suspects_run_on_a_worker_that_is_apart() -> None:
    pool = bench()
    numbers = on_gpu(pool, "a")
    fail(pool)
    assert only(Recycle, pool.said) == [Recycle(1, "its requests may have ended a worker", isolated=True)]
    start(pool, 1)
    assert [(it.worker, it.model) for it in only(Activate, pool.said)] == [(1, "a")]
    pool.settle()
    assert only(Dispatch, pool.said) == [Dispatch(numbers[0], 1)]


def test_it_gets_nobody_elses_requests_and_goes_back_when_they_are_done() -> None:
    pool = bench()
    (suspect,) = on_gpu(pool, "a")
    fail(pool)
    start(pool, 1)
    pool.settle()
    other = pool.serve("a")
    assert pool.on(other) != 1
    pool.finish(suspect)
    assert only(Recycle, pool.said)[-1] == Recycle(1, "no suspected requests are left")
    pool.settle()
    assert pool.phases()[1] == "blank"
    assert pool.scheduler.state.isolations == {}


def test_a_suspect_that_kills_that_worker_too_is_refused_and_hurts_nobody_else() -> None:
    pool = bench()
    (suspect,) = on_gpu(pool, "a")
    fail(pool)
    start(pool, 1)
    pool.tell(WorkerBlank(0, GIB))
    pool.settle()
    other = pool.serve("b")
    pool.die(1)
    refusal = pool.refused()[suspect]
    assert (refusal.kind, refusal.retry_after) == ("fault", 0.0)
    assert "served nothing else" in refusal.reason
    assert pool.on(other) is not None


def test_of_several_that_kill_it_each_is_tried_alone() -> None:
    pool = bench(max_running=3)
    innocent, culprit, third = [*on_gpu(pool, "a"), pool.serve("a"), pool.serve("a")]
    fail(pool)
    start(pool, 1)
    pool.settle()
    assert pool.dispatched() == [innocent, culprit, third]
    pool.clear()
    pool.die(1)
    assert pool.refused() == {}
    pool.tell(WorkerBlank(1, GIB))
    pool.settle()
    assert pool.dispatched() == [innocent]
    pool.finish(innocent)
    assert pool.dispatched() == [innocent, culprit]
    pool.die(1)
    assert pool.refused().keys() == {culprit}
    pool.tell(WorkerBlank(1, GIB))
    pool.settle()
    pool.finish(third)
    assert pool.dispatched() == [innocent, culprit, third]
    assert pool.scheduler.state.isolations == {}


def test_it_serves_the_suspects_of_one_model_after_the_other() -> None:
    pool = bench()
    first, second = on_gpu(pool, "a", "b")
    fail(pool)
    start(pool, 1)
    pool.settle()
    assert pool.dispatched() == [first]
    pool.finish(first)
    assert [it.worker for it in only(Park, pool.said)] == [1]
    pool.settle()
    assert pool.dispatched() == [first, second]


def test_half_of_the_workers_are_for_the_suspects_and_half_for_the_pool() -> None:
    pool = bench(devices=(GPU,), workers=4, memory=60 * GIB, copies=4)
    numbers = on_gpu(pool, "a", "b", "c")
    fail(pool, workers=(0, 1, 2, 3))
    isolations = pool.scheduler.state.isolations
    assert {number: found.waiting for number, found in isolations.items()} == {
        3: [numbers[0]],
        2: [numbers[1], numbers[2]],
    }
    assert pool.phases() == ["starting", "starting", "isolated", "isolated"]


def test_another_fault_adds_its_suspects() -> None:
    pool = bench(devices=(GPU,))
    (first,) = on_gpu(pool, "a")
    fail(pool)
    second = pool.ask("b")
    pool.tell(WorkerBlank(0, GIB))
    pool.settle(but=Recycle)
    assert pool.on(second) == 0
    pool.tell(DeviceFault(GPU, (0,), "the GPU failed under it", True))
    assert pool.scheduler.state.isolations[1].waiting == [first, second]


def test_a_suspect_whose_client_leaves_is_forgotten() -> None:
    pool = bench()
    (suspect,) = on_gpu(pool, "a")
    fail(pool)
    pool.tell(Aborted(suspect))
    start(pool, 1)
    assert only(Recycle, pool.said)[-1] == Recycle(1, "no suspected requests are left")


def test_suspects_of_a_model_that_cannot_be_activated_there_are_refused() -> None:
    pool = bench()
    (suspect,) = on_gpu(pool, "a")
    fail(pool)
    start(pool, 1)
    pool.take(Activate)
    pool.tell(ActivationFailed(1, "a", "a file is missing", GIB))
    assert "a file is missing" in pool.refused()[suspect].reason


def test_a_worker_apart_that_never_starts_is_given_up() -> None:
    pool = bench()
    (suspect,) = on_gpu(pool, "a")
    fail(pool)
    pool.take(Recycle)
    pool.die(1)
    assert pool.refused() == {}
    pool.die(1)
    assert "cannot be had" in pool.refused()[suspect].reason
    assert pool.scheduler.state.isolations == {}


def test_without_memory_for_its_model_a_suspect_is_served_by_the_pool() -> None:
    pool = bench("ab", memory=8 * GIB, devices=(GPU,))
    (first,) = on_gpu(pool, "a")
    fail(pool, workers=(0, 1))
    assert 1 in pool.scheduler.state.isolations
    assert pool.scheduler.state.requests[first].isolated


# how the models come back


def test_models_come_back_by_the_deadlines_that_wait_for_them() -> None:
    pool = bench(max_running=1, devices=(GPU,), workers=3, memory=60 * GIB)
    on_gpu(pool, "a", "b", "c")
    for name, within in (("a", 9.0), ("b", 1.0), ("c", 5.0)):
        pool.ask(name, within=within)
    fail(pool, suspected=False, workers=(0, 1, 2))
    for worker in range(3):
        pool.tell(WorkerBlank(worker, GIB))
    pool.settle()
    assert [it.model for it in only(Activate, pool.said)] == ["b", "c", "a"]


def test_an_operators_activation_that_is_lost_with_it_is_answered() -> None:
    pool = bench()
    command = pool.activate("a", 1)
    pool.settle(but=Activate)
    fail(pool, suspected=False)
    assert pool.answers() == {command: False}


@pytest.mark.parametrize("suspected", [True, False])
def test_an_activation_that_is_lost_counts_against_its_model_if_it_may_be_the_cause(suspected: bool) -> None:
    pool = bench()
    pool.ask("a")
    pool.settle(but=Activate)
    worker = pool.phases().index("activating")
    fail(pool, suspected=suspected, workers=(worker,))
    assert pool.scheduler.state.models["a"].failures == int(suspected)
