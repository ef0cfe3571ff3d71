"""What the scheduler promises of a device's memory. Sizes are in GiB; a worker holds 1, and 2 with a model."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from scheduler.actions import Activate, Blank, Drain, Park, Recycle, SetKvLimit
from scheduler.events import Activated, Copied, LimitApplied, OperatorActivate, Rehearsing, Stats, WorkerBlank
from scheduler.state.phases import Phase
from tests.rig.fake_pool import GIB, Bench, model, only


def gpu(sizes: Mapping[str, int], *, memory: int, **fields: Any) -> Bench:
    """Models of these sizes on a device of so much memory; their weights are in host memory already."""
    weights = {name: size * GIB for name, size in sizes.items()}
    fields.setdefault("workers", len(sizes))
    models = fields.pop("models", [model(name, preload=True) for name in sizes])
    bench = Bench(models, weights=weights, memory=memory * GIB, host_memory=1000 * GIB, **fields)
    bench.clear()
    return bench


def uses(bench: Bench, worker: int, size: int) -> None:
    """A worker reports what its KV cache has mapped."""
    bench.tell(Stats(worker, 0, 0, size * GIB, 0, 0))


def holds(bench: Bench, worker: int, size: int) -> None:
    """A worker reports what it holds besides weights and KV cache."""
    bench.tell(Stats(worker, 0, 0, 0, 0, 0, size * GIB))


# --- what workers hold ----------------------------------------------------------------------------------------


def test_what_a_worker_comes_to_hold_while_it_serves_is_taken_from_kv_limits() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.serve("a")
    assert bench.kv_limits() == {0: 20 - 1 - 2 - 6}
    holds(bench, 0, 5)
    bench.wait(1.0)
    bench.settle()
    assert bench.kv_limits() == {0: 20 - 1 - 5 - 6}
    holds(bench, 0, 4)
    bench.wait(1.0)
    bench.settle()
    assert bench.kv_limits() == {0: 20 - 1 - 5 - 6}


def test_who_rehearses_keeps_the_least_for_it_may_not_give_back_more_in_time() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.ask("a")
    bench.take(Activate)
    bench.tell(Rehearsing(0, begins=True))
    bench.tell(Activated(0, "a", 0.1, 2 * GIB))
    bench.settle()
    assert bench.kv_limits() == {0: 1}
    bench.serve("b")
    assert bench.kv_limits() == {0: 1, 1: 20 - (2 + 6 + 1) - (2 + 6)}
    bench.tell(Rehearsing(0, begins=False))
    bench.wait(1.0)
    bench.settle()
    assert bench.kv_limits() == {0: 2, 1: 2}


def test_its_next_activation_counts_on_the_most_that_a_model_has_held() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    request = bench.serve("a")
    holds(bench, 0, 5)
    bench.finish(request)
    bench.evict("a")
    bench.settle()
    assert bench.kv_limits() == {}
    bench.serve("a")
    assert bench.kv_limits() == {0: 20 - 1 - 5 - 6}


# --- KV limits ------------------------------------------------------------------------------------------------


def test_a_model_alone_has_all_that_is_left_as_its_kv_cache() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.serve("a")
    assert bench.kv_limits() == {0: 20 - 1 - 2 - 6}


def test_a_model_begins_with_the_minimum_and_then_shares_evenly() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=24)
    bench.serve("a")
    bench.ask("b")
    (lowered,) = [limit for limit in only(SetKvLimit, bench.said) if limit.nbytes < 15 * GIB and limit.worker == 0]
    assert lowered.nbytes == 7 * GIB, "b needs 6 of weights, 1 more of workspace, 1 of KV cache"
    bench.settle()
    assert only(Activate, bench.said)[-1].kv_limit == GIB
    assert bench.kv_limits() == {0: 4, 1: 4}


def test_an_activation_waits_until_its_neighbour_has_given_its_kv_cache_back() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.serve("a")
    bench.clear()
    request = bench.ask("b")
    limit = bench.take(SetKvLimit)
    assert bench.phases()[1] == Phase.PREPARING
    bench.tell(LimitApplied(0, limit.revision, limit.nbytes + 1))
    bench.tell(LimitApplied(0, limit.revision - 1, 0))
    assert not only(Activate, bench.said), "more is mapped, and that was the limit before"
    bench.tell(LimitApplied(0, limit.revision, limit.nbytes))
    assert only(Activate, bench.said)
    bench.settle()
    assert bench.on(request) == 1


def test_limits_are_revised_in_order_beginning_with_the_activation() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.serve("a")
    activation, limit = only(Activate, bench.said)[0], only(SetKvLimit, bench.said)[0]
    assert 0 < activation.kv_revision < limit.revision


def test_those_who_use_the_least_of_their_kv_cache_give_first() -> None:
    bench = gpu({"a": 2, "b": 2, "c": 2}, memory=39)
    for name in ("a", "b"):
        bench.serve(name)
    assert bench.kv_limits() == {0: 15, 1: 15}
    uses(bench, 0, 14)
    bench.clear()
    bench.ask("c")
    assert [(limit.worker, limit.nbytes // GIB) for limit in only(SetKvLimit, bench.said)] == [(1, 11)]


def test_a_limit_is_not_changed_for_a_trifle() -> None:
    bench = gpu({"a": 2, "b": 2}, memory=20)
    bench.serve("a")
    bench.clear()
    bench.tell(WorkerBlank(1, GIB + GIB // 8))
    assert only(SetKvLimit, bench.said), "the device is overdrawn, trifle or not"
    bench.settle()
    bench.clear()
    bench.tell(WorkerBlank(1, GIB))
    assert not only(SetKvLimit, bench.said)


def test_what_a_parked_or_dead_model_had_goes_to_those_who_are_left() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.serve("a")
    bench.finish(bench.serve("b"))
    assert bench.kv_limits() == {0: 2, 1: 2}
    bench.evict("b")
    bench.settle()
    assert bench.kv_limits() == {0: 20 - 2 - 6 - 2}
    bench.finish(bench.serve("b"))
    bench.die(1)
    bench.settle()
    assert bench.kv_limits() == {0: 2}, "the driver has not freed it yet"
    bench.tell(WorkerBlank(1, GIB))
    bench.settle()
    assert bench.kv_limits() == {0: 20 - 2 - 6 - 1}


def test_a_model_whose_worker_died_waits_for_that_ones_memory_and_nobody_else_is_evicted() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.finish(bench.serve("a"))
    bench.finish(bench.serve("b"))
    bench.die(1)
    bench.ask("b")
    bench.settle()
    assert bench.active() == {0: "a"}
    bench.tell(WorkerBlank(1, GIB))
    bench.settle()
    assert bench.active() == {0: "a", 1: "b"}


def test_what_a_model_was_measured_to_hold_counts_from_then_on() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    request = bench.ask("a")
    activation = bench.take(Activate)
    bench.tell(Activated(activation.worker, "a", 0.1, 5 * GIB))
    bench.settle()
    bench.finish(request)
    assert bench.kv_limits() == {0: 20 - 1 - 5 - 6}
    bench.evict("a")
    bench.settle()
    bench.serve("b")
    bench.ask("a")
    bench.settle()
    assert bench.active() == {1: "b"}, "a does not fit beside it any more"
    assert bench.phases()[0] == Phase.PARKED


# --- an activation that fails for want of memory -------------------------------------------------------------


def test_an_activation_whose_neighbours_do_not_answer_fails_and_they_have_their_limits_back() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20, workers=2)
    running = bench.serve("a")
    bench.clear()
    waiting = bench.ask("b")
    for _ in range(2):
        bench.take(SetKvLimit)
        bench.wait(9.9)
        assert bench.waits(waiting)
        assert bench.phases()[1] == Phase.PREPARING
        bench.wait(0.1)
    refusal = bench.refused()[waiting]
    assert "did not give back their KV cache in time" in refusal.reason
    assert bench.phases()[1] == Phase.BLANK
    assert not only(Activate, bench.said)
    bench.settle()
    assert bench.kv_limits() == {0: 11}
    assert bench.on(running) == 0


def beside_a_parked_b() -> Bench:
    """Two workers: one serves a, which has all of the memory that is left, the other keeps b's skeleton."""
    bench = gpu({"a": 2, "b": 2, "c": 2}, memory=14, workers=2)
    bench.serve("a")
    bench.finish(bench.serve("b"))
    bench.evict("b")
    bench.settle()
    return bench


def no_memory_comes(bench: Bench) -> None:
    for _ in range(2):
        bench.take(SetKvLimit)
        bench.wait(10)


def test_a_parked_worker_stays_parked_when_its_own_model_lacks_memory() -> None:
    bench = beside_a_parked_b()
    bench.ask("b")
    assert bench.phases()[1] == Phase.PREPARING
    no_memory_comes(bench)
    assert (bench.phases()[1], bench.scheduler.state.workers[1].model) == (Phase.PARKED, "b")


@pytest.mark.parametrize(("torn_down", "then"), [(True, (Phase.BLANK, None)), (False, (Phase.BLANKING, "b"))])
def test_for_another_model_that_lacks_memory_it_is_torn_down(torn_down: bool, then: tuple[Phase, str | None]) -> None:
    bench = beside_a_parked_b()
    bench.ask("c")
    assert (bench.phases()[1], bench.scheduler.state.workers[1].model) == (Phase.PREPARING, "c")
    bench.take(Blank)
    if torn_down:
        bench.tell(WorkerBlank(1))
    no_memory_comes(bench)
    assert (bench.phases()[1], bench.scheduler.state.workers[1].model) == then


def test_a_neighbour_that_cannot_give_back_enough_fails_the_activation_at_once() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.serve("a")
    uses(bench, 0, 11)
    command = bench.activate("b")
    for _ in range(2):
        limit = next(it for it in reversed(only(SetKvLimit, bench.said)) if it.nbytes < 11 * GIB)
        bench.tell(LimitApplied(0, limit.revision, 9 * GIB, applied=False))
    assert bench.answers() == {command: False}
    bench.settle()
    assert bench.kv_limits() == {0: 11}


def test_a_worker_that_dies_before_its_activation_begins_leaves_nothing_reserved() -> None:
    bench = gpu({"a": 6, "b": 6}, memory=20)
    bench.serve("a")
    bench.ask("b")
    bench.take(SetKvLimit)
    bench.die(1)
    bench.tell(WorkerBlank(1, GIB))
    bench.settle()
    assert bench.active() == {0: "a", 1: "b"}


# --- when limits are not enough -------------------------------------------------------------------------------


def test_an_idle_model_makes_way_when_shrinking_cannot_suffice() -> None:
    bench = gpu({"a": 8, "b": 8}, memory=20)
    bench.finish(bench.serve("a"))
    bench.serve("b")
    assert [type(action) for action in bench.decisions()] == [Activate, Park, Activate]
    assert only(Park, bench.said)[0].reason == "idle 0.0 s, 2.0 GiB of cpu needed for b"
    assert bench.active() == {1: "b"}


def test_as_many_make_way_as_it_takes_and_no_more() -> None:
    bench = gpu({"a": 2, "b": 2, "c": 2, "d": 10}, memory=24)
    for name in ("a", "b", "c"):
        bench.now += 1
        bench.finish(bench.serve(name))
    bench.clear()
    bench.serve("d")
    assert [action.worker for action in only(Park, bench.said)] == [0, 1]
    assert sorted(bench.active().values()) == ["c", "d"]


def test_a_busy_model_is_drained_for_its_memory_after_its_quantum() -> None:
    bench = gpu({"a": 8, "b": 8}, memory=20, quantum=5.0, drain_after=1.0)
    running = bench.serve("a")
    waiting = bench.ask("b")
    bench.wait(4)
    assert not only(Drain, bench.said)
    bench.wait(1)
    assert only(Drain, bench.said)
    bench.wait(1)
    bench.finish(running)
    bench.settle()
    assert bench.on(waiting) == 1


def test_skeletons_are_torn_down_when_their_memory_is_needed() -> None:
    bench = gpu({"a": 2, "b": 2, "c": 16}, memory=20 + 1)
    for name in ("a", "b"):
        bench.finish(bench.serve(name))
    bench.evict("a")
    bench.evict("b")
    bench.settle()
    bench.clear()
    bench.serve("c")
    assert [type(action) for action in bench.decisions()] == [Blank, Blank, Activate]
    assert bench.active() == {2: "c"}


def test_memory_that_is_freed_for_one_model_is_not_taken_by_a_smaller_one_that_came_later() -> None:
    bench = gpu({"a": 8, "big": 10, "small": 3}, memory=20, quantum=5.0)
    running = bench.serve("a")
    bench.ask("big")
    bench.now += 0.5
    bench.ask("small")
    bench.wait(5)
    assert only(Drain, bench.said)
    bench.finish(running)
    bench.settle()
    assert "big" in bench.active().values()


def test_a_model_that_can_never_fit_is_refused_at_once_with_the_sizes() -> None:
    bench = gpu({"a": 20, "b": 2}, memory=20, workers=2)
    number = bench.ask("a")
    assert bench.refused()[number].kind == "unavailable"
    assert "does not fit into the memory of cpu: that takes 24.0 GiB of 20.0 GiB" in bench.refused()[number].reason
    command = bench.activate("a")
    assert bench.answers() == {command: False}


def test_a_model_that_does_not_fit_beside_a_pinned_one_is_refused_once_that_is_active() -> None:
    models = [model("a", pinned=True), model("b", preload=True)]
    bench = gpu({"a": 10, "b": 10}, memory=20, models=models, workers=2)
    assert bench.active() == {0: "a"}
    number = bench.ask("b")
    assert bench.refused()[number].kind == "unavailable"


def test_a_model_goes_to_the_device_that_has_the_memory() -> None:
    bench = gpu({"a": 8, "b": 8}, memory=20, workers=2, devices=("cuda:0", "cuda:1"))
    bench.serve("a")
    bench.serve("b")
    assert sorted(bench.active()) == [0, 2]


# --- one copy at a time ---------------------------------------------------------------------------------------


def test_activations_of_a_device_go_one_after_the_other_by_the_earliest_deadline() -> None:
    bench = Bench(["a", "b", "c"], workers=3, copies=1)
    for name, within in (("a", 9), ("b", 8), ("c", 2)):
        bench.ask(name, within=within)
    begun = []
    while bench.phases() != ["active"] * 3:
        activation = bench.take(Activate)
        assert bench.phases().count("activating") == 1
        begun.append(activation.model)
        bench.tell(Activated(activation.worker, activation.model, 0.1))
    assert begun == ["a", "c", "b"]


def test_the_next_one_begins_when_the_weights_are_copied_although_the_first_is_not_active() -> None:
    bench = Bench(["a", "b"], workers=2, copies=1)
    bench.ask("a")
    bench.ask("b")
    first = bench.take(Activate)
    assert bench.phases() == ["activating", "preparing"]
    bench.tell(Copied(first.worker))
    assert bench.phases() == ["activating", "activating"]


def test_another_models_skeleton_is_torn_down_while_the_link_is_taken() -> None:
    bench = Bench(["a", "b", "c"], workers=2, copies=1)
    bench.finish(bench.serve("a"))
    bench.evict("a")
    bench.settle()
    bench.ask("b")
    copying = bench.take(Activate)
    bench.ask("c")
    torn_down = bench.take(Blank)
    assert bench.phases()[torn_down.worker] == "preparing"
    bench.tell(Activated(copying.worker, "b", 0.1))
    assert not only(Activate, bench.pending), "the skeleton is still there"
    bench.tell(WorkerBlank(torn_down.worker))
    assert bench.take(Activate).model == "c"


def test_what_a_worker_holds_without_its_skeleton_counts_while_the_link_is_taken() -> None:
    """Nothing else in its device's books changes at that moment."""
    bench = gpu({"a": 2, "b": 2, "c": 2}, memory=30, workers=2, copies=1)
    bench.finish(bench.serve("a"))
    bench.evict("a")
    bench.settle()
    bench.ask("b")
    bench.take(Activate)
    bench.ask("c")
    torn_down = bench.take(Blank)
    bench.settle()
    bench.tell(WorkerBlank(torn_down.worker, GIB // 2))
    assert bench.phases()[torn_down.worker] == Phase.PREPARING
    assert bench.scheduler.state.view(bench.scheduler.state.devices["cpu"]).kept == GIB // 2


def test_where_memory_is_not_accounted_a_limit_that_is_not_kept_fails_nobody() -> None:
    """A CPU's KV cache has a fixed size: its worker answers to any limit that it does not hold."""
    bench = Bench(["a", "b", "c"], workers=2)
    bench.finish(bench.serve("a"))
    bench.evict("a")
    bench.settle()
    bench.serve("b")
    command = bench.activate("c", 0)
    bench.take(Blank)
    revision = bench.scheduler.state.account(bench.scheduler.state.workers[1]).revision
    bench.tell(LimitApplied(1, revision, 5 * GIB, applied=False))
    bench.tell(WorkerBlank(0))
    bench.settle()
    assert bench.answers()[command]


def test_a_gpus_link_takes_one_copy_at_a_time_and_a_cpu_any_number() -> None:
    for devices, at_once in ((("cpu",), 2), (("cuda:0",), 1), (("cuda:0", "cuda:1"), 2)):
        bench = Bench(["a", "b"], workers=2, devices=devices)
        bench.activate("a", 0)
        bench.activate("b", len(devices))
        assert len(only(Activate, bench.said)) == at_once, devices


# --- the reserve, and worn workers ----------------------------------------------------------------------------


def test_the_reserve_is_used_by_an_activation_and_then_refilled() -> None:
    bench = Bench(["a", "b", "c", "d"], workers=3, blank_reserve=1)
    for name in ("a", "b", "c"):
        bench.now += 1
        bench.finish(bench.serve(name))
    bench.wait(1)
    bench.settle()
    assert sorted(bench.phases()) == ["active", "active", "blank"], "a is gone, whoever comes next finds a blank one"
    bench.clear()
    bench.serve("d")
    assert isinstance(bench.decisions()[0], Activate)
    bench.wait(1)
    bench.settle()
    assert sorted(bench.active().values()) == ["c", "d"]
    assert bench.phases().count("blank") == 1


def test_a_pause_between_two_requests_costs_no_model_its_worker_for_the_reserve() -> None:
    bench = Bench(["a", "b", "c"], workers=2, blank_reserve=1, quantum=2.0)
    for name in ("a", "b"):
        bench.finish(bench.serve(name))
    bench.wait(1.9)
    assert sorted(bench.active().values()) == ["a", "b"]
    bench.finish(bench.serve("a"))
    bench.wait(0.2)
    bench.settle()
    assert sorted(bench.active().values()) == ["a"], "b has not been asked for 2 s"


def test_no_model_is_parked_for_the_reserve_while_each_has_a_worker() -> None:
    bench = Bench(["a", "b"], workers=2, blank_reserve=1)
    for name in ("a", "b"):
        bench.finish(bench.serve(name))
    bench.wait(10)
    assert len(bench.active()) == 2


def test_a_worker_that_has_grown_too_large_is_replaced_in_the_background() -> None:
    bench = gpu({"a": 2}, memory=20, workers=2, blank_reserve=2)
    bench.finish(bench.serve("a"))
    bench.held["blank"] = GIB + GIB // 2 + 1
    bench.evict("a")
    bench.settle(but=Recycle)
    assert [action.worker for action in only(Recycle, bench.said)] == [0]
    assert bench.phases()[0] == Phase.STARTING
    bench.settle()
    bench.wait(1)
    assert len(only(Recycle, bench.said)) == 1, "what the new process holds is where it begins"


def test_the_last_blank_worker_is_not_replaced_while_somebody_waits() -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 2, "b": 2})
    bench.serve("a")
    bench.ask("b")
    bench.tell(WorkerBlank(1, 2 * GIB))
    assert not only(Recycle, bench.said), "b's weights are on their way"
    bench.settle()
    assert sorted(bench.active().values()) == ["a", "b"]


# --- the operator ---------------------------------------------------------------------------------------------


def test_an_operator_hears_that_a_model_does_not_fit_there() -> None:
    models = [model("a", pinned=True), model("b", preload=True)]
    sizes = {"a": 10, "b": 10}
    bench = gpu(sizes, memory=20, models=models, workers=2, devices=("cuda:0", "cuda:1"))
    (pinned,) = bench.active()
    beside = 1 - pinned if pinned < 2 else 5 - pinned
    bench.tell(OperatorActivate(900, "b", beside))
    assert bench.answers() == {900: False}
    bench.serve("b")


# --- under load -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_under_load_everybody_is_served_and_no_device_is_overcommitted(seed: int) -> None:
    """The books are checked after every event. Neighbours take a while to give memory back, and answers to end."""
    random = Random(seed)
    sizes = {name: random.randint(1, 9) for name in "abcdef"}
    devices = ("cuda:0", "cuda:1")[: random.randint(1, 2)]
    bench = gpu(sizes, memory=16, workers=3, devices=devices, blank_reserve=random.randint(0, 1))
    running: set[int] = set()
    waiting: dict[int, float] = {}
    slow: list[tuple[float, LimitApplied]] = []
    for step in range(700):
        bench.now += 0.1
        if step < 400 and random.random() < 0.4:
            waiting[bench.ask(random.choice("abcdef"))] = bench.now
        while any(isinstance(action, SetKvLimit) for action in bench.pending):
            limit = bench.take(SetKvLimit)
            slow.append((bench.now + random.random(), LimitApplied(limit.worker, limit.revision, 0)))
        for answer in [answer for due, answer in slow if due <= bench.now]:
            bench.tell(answer)
        slow = [(due, answer) for due, answer in slow if due > bench.now]
        bench.settle(but=SetKvLimit)
        bench.wait(0)
        running |= {number for number in waiting if bench.on(number) is not None}
        waiting = {number: since for number, since in waiting.items() if number not in running}
        for number in [number for number in sorted(running) if random.random() < 0.2]:
            running.discard(number)
            bench.finish(number)
        assert not bench.refused()
        assert all(bench.now - since < 30 for since in waiting.values()), f"{waiting} starve"
    assert not waiting


# --- what an operator wants and cannot have -------------------------------------------------------------------


def pinned_beside_another(*, started: bool) -> Bench:
    return gpu({"a": 1, "b": 2}, memory=9, models=["a", model("b", pinned=True)], start=started)


def test_a_second_copy_of_a_pinned_model_is_not_waited_for_where_it_can_never_fit() -> None:
    bench = pinned_beside_another(started=True)
    assert bench.active() == {0: "b"}
    command = bench.activate("b", worker=1)
    assert bench.answers() == {command: False}
    bench.serve("a")


def test_nobody_waits_on_a_worker_for_which_an_operator_asked_in_vain_before_its_neighbour_was_there() -> None:
    bench = pinned_beside_another(started=False)
    request = bench.ask("a")
    commands = [bench.activate("b", worker=worker) for worker in (0, 1)]
    for worker in (0, 1):
        bench.tell(WorkerBlank(worker, GIB))
    bench.settle()
    assert bench.answers() == {commands[0]: True, commands[1]: False}
    assert bench.on(request) == 1
