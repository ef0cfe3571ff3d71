"""What the scheduler promises, one promise a test. `Bench` is an obedient pool with a clock that the test moves."""

from __future__ import annotations

from scheduler.actions import Activate, Answer, Blank, Drain, Park, Resume, SetKvLimit, Stage, Unstage
from scheduler.events import (
    Aborted,
    Activated,
    ActivationFailed,
    Counted,
    Finished,
    FirstToken,
    LimitApplied,
    OperatorGone,
    Staged,
    StageFailed,
    Stats,
    WorkerBlank,
)
from tests.rig.fake_pool import Bench, model, only


def keep_busy(bench: Bench, *names: str) -> dict[str, list[int]]:
    """Each of these models runs two requests, all a worker may."""
    return {name: [bench.serve(name), bench.serve(name)] for name in names}


def renew(bench: Bench, running: dict[str, list[int]]) -> None:
    """Another request of each of these models arrives, then the one that runs longest ends: none is ever idle."""
    for name, requests in running.items():
        if len(requests) < 3:
            requests.append(bench.ask(name))
        ends = next((number for number in requests if bench.on(number) is not None), None)
        if ends is not None:
            requests.remove(ends)
            bench.finish(ends)


# --- activation and dispatch ----------------------------------------------------------------------------------


def test_nothing_is_activated_before_somebody_asks() -> None:
    bench = Bench(["a", "b"], workers=2)
    bench.wait(10)
    assert bench.said == []


def test_a_request_activates_its_model_and_waits_for_it() -> None:
    bench = Bench(["a"])
    request = bench.ask("a")
    assert only(Activate, bench.said)[0].model == "a"
    assert bench.waits(request)
    bench.settle()
    assert bench.on(request) == 0


def test_a_request_waits_for_a_worker_that_still_starts() -> None:
    bench = Bench(["a"], start=False)
    request = bench.ask("a")
    assert bench.said == []
    bench.tell(WorkerBlank(0))
    bench.settle()
    assert bench.on(request) == 0


def test_an_idle_model_is_not_parked_for_a_request_that_a_starting_worker_will_serve() -> None:
    bench = Bench(["a", "b"], workers=2, start=False)
    bench.tell(WorkerBlank(0))
    bench.finish(bench.serve("a"))
    bench.ask("b")
    bench.wait(4)
    assert not only(Park, bench.said)
    bench.wait(1)
    assert only(Park, bench.said), "by now it ought to have started"


def test_a_model_comes_back_to_the_worker_that_kept_its_skeleton() -> None:
    bench = Bench(["a", "b"], workers=2, idle_timeout=5.0)
    for name in ("a", "b"):
        bench.finish(bench.serve(name))
    bench.wait(6)
    bench.settle()
    assert bench.active() == {}
    bench.serve("b")
    assert bench.active() == {1: "b"}


def test_waiting_requests_are_dispatched_in_the_order_of_their_deadlines() -> None:
    bench = Bench(["a"], max_running=1)
    running = bench.serve("a")
    late, soon, later = bench.ask("a", within=20), bench.ask("a", within=1), bench.ask("a", within=30)
    bench.clear()
    for number in (running, soon, late):
        bench.finish(number)
    assert bench.dispatched() == [soon, late, later]


def test_no_worker_gets_more_than_max_running_and_the_least_loaded_is_chosen() -> None:
    bench = Bench(["a"], workers=2, max_running=2)
    for worker in (0, 1):
        bench.activate("a", worker)
    bench.settle()
    requests = [bench.ask("a") for _ in range(5)]
    assert {bench.on(number) for number in requests[:2]} == {0, 1}
    assert {bench.on(number) for number in requests[2:4]} == {0, 1}
    assert bench.waits(requests[4])
    bench.finish(requests[0])
    assert bench.on(requests[4]) is not None


def test_each_worker_gets_an_equal_share_of_its_devices_kv_memory() -> None:
    bench = Bench(["a"], workers=4)
    bench.serve("a")
    (limit,) = only(SetKvLimit, bench.said)
    assert limit.nbytes == 2**30 // 4
    bench.tell(LimitApplied(limit.worker, limit.revision, 1000))
    assert bench.scheduler.state.workers[limit.worker].kv_mapped == 1000
    bench.tell(LimitApplied(limit.worker, limit.revision - 1, 5))
    assert bench.scheduler.state.workers[limit.worker].kv_mapped == 1000


# --- refusal --------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    bench = Bench(["a"], max_running=1, queue=2)
    running = bench.serve("a")
    bench.now += 8
    bench.finish(running)
    for _ in range(3):
        bench.ask("a")
    number = bench.ask("a")
    refusal = bench.refused()[number]
    assert refusal.kind == "queue_full"
    assert refusal.retry_after == 16.0, "two wait, each takes 8 s"


def test_late_requests_are_served_by_default() -> None:
    bench = Bench(["a"], max_running=1)
    running = bench.serve("a")
    waiting = bench.ask("a", within=1)
    bench.wait(60)
    bench.finish(running)
    assert bench.on(waiting) == 0


def test_a_request_that_cannot_meet_its_deadline_is_refused_on_arrival_if_so_configured() -> None:
    bench = Bench(["a", "b"], late="refuse", idle_timeout=1.0)
    request = bench.ask("a")
    activation = bench.take(Activate)
    bench.tell(Activated(activation.worker, "a", 3.0))
    bench.finish(request)
    bench.wait(2)
    bench.settle()
    number = bench.ask("a", within=1.0)
    assert bench.refused()[number].kind == "late"
    assert bench.refused()[number].retry_after == 2.0
    assert bench.waits(bench.ask("a", within=4.0))


def test_a_request_whose_deadline_passes_in_the_queue_is_refused_if_so_configured() -> None:
    bench = Bench(["a"], max_running=1, late="refuse")
    running = bench.serve("a")
    hasty, patient = bench.ask("a", within=1), bench.ask("a", within=60)
    bench.wait(2)
    assert {number: refusal.kind for number, refusal in bench.refused().items()} == {hasty: "late"}
    bench.finish(running)
    assert bench.on(patient) == 0


def test_a_late_request_is_not_dispatched_even_between_two_ticks() -> None:
    bench = Bench(["a"], max_running=1, late="refuse")
    running = bench.serve("a")
    hasty = bench.ask("a", within=1)
    bench.now += 2
    bench.finish(running)
    assert bench.refused()[hasty].kind == "late"


# --- eviction -------------------------------------------------------------------------------------------------


def test_a_model_is_parked_once_idle_for_the_timeout_and_not_before() -> None:
    bench = Bench(["a"], idle_timeout=45.0)
    request = bench.serve("a")
    bench.wait(100)
    assert bench.active() == {0: "a"}, "it was busy all the time"
    bench.finish(request)
    bench.wait(44)
    assert bench.active() == {0: "a"}
    bench.wait(1)
    assert bench.active() == {}


def test_the_least_recently_used_idle_model_makes_way() -> None:
    bench = Bench(["a", "b", "c"], workers=2)
    for name in ("a", "b", "a"):
        bench.now += 1
        bench.finish(bench.serve(name))
    bench.serve("c")
    assert sorted(bench.active().values()) == ["a", "c"]


def test_between_two_requests_a_model_keeps_its_worker_until_it_has_had_its_quantum() -> None:
    bench = Bench(["a", "b"], linger=0.1, quantum=2.0, drain_after=1.0)
    running = bench.serve("a")
    bench.ask("b")
    for _ in range(38):
        bench.finish(running)
        bench.wait(0.05)
        assert bench.active() == {0: "a"}, "its client goes on at once, so it is not idle"
        running = bench.serve("a")
    bench.wait(0.2)
    bench.finish(running)
    bench.settle()
    assert bench.active() == {0: "b"}


def test_a_model_that_lingers_makes_way_when_nothing_more_comes() -> None:
    bench = Bench(["a", "b"], linger=0.1, quantum=2.0)
    bench.finish(bench.serve("a"))
    bench.ask("b")
    bench.settle()
    assert bench.active() == {0: "a"}
    bench.wait(0.11)
    bench.settle()
    assert bench.active() == {0: "b"}


def test_pinned_models_are_activated_at_the_start_and_never_evicted() -> None:
    bench = Bench([model("a", pinned=True), "b", "c"], workers=2, idle_timeout=5.0)
    assert bench.active() == {0: "a"}
    bench.serve("b")
    waiting = bench.ask("c")
    for _ in range(20):
        bench.wait(1)
        bench.settle()
        assert bench.active().get(0) == "a"
    assert bench.waits(waiting), "b is busy for ever, and a is pinned"
    assert bench.answers() == {}
    command = bench.evict("a")
    assert bench.answers() == {command: False}


def test_a_pinned_models_second_worker_is_not_pinned() -> None:
    bench = Bench([model("a", pinned=True), "b"], workers=2)
    bench.activate("a", 1)
    bench.settle()
    assert bench.active() == {0: "a", 1: "a"}
    bench.serve("b")
    assert sorted(bench.active().values()) == ["a", "b"]


def test_where_every_worker_is_pinned_others_are_refused_at_once() -> None:
    bench = Bench([model("a", pinned=True), "b"])
    number = bench.ask("b")
    assert bench.refused()[number].kind == "unavailable"
    command = bench.activate("b")
    assert bench.answers() == {command: False}


def test_a_busy_model_is_not_parked_but_drained_and_only_after_drain_after_and_quantum() -> None:
    bench = Bench(["a", "b"], drain_after=1.0, quantum=5.0)
    running = bench.serve("a")
    bench.ask("b")
    bench.wait(2)
    assert not only(Drain, bench.said), "its quantum is not over"
    bench.wait(3)
    assert only(Drain, bench.said)
    assert not only(Park, bench.said)
    assert bench.on(running) == 0


def test_nobody_is_drained_before_drain_after() -> None:
    bench = Bench(["a", "b"], drain_after=1.0, quantum=0.0)
    bench.serve("a")
    bench.wait(10)
    bench.ask("b")
    bench.wait(0.9)
    assert not only(Drain, bench.said)
    bench.wait(0.1)
    assert only(Drain, bench.said)


def test_a_drained_model_gets_nothing_new_is_parked_and_the_other_one_activated() -> None:
    bench = Bench(["a", "b"])
    running = bench.serve("a")
    wanted = bench.ask("b")
    bench.wait(2)
    held_back = bench.ask("a")
    bench.clear()
    assert bench.waits(held_back)
    bench.finish(running)
    bench.settle()
    assert [type(action) for action in bench.decisions()[:3]] == [Park, Blank, Activate]
    assert bench.on(wanted) == 0
    assert bench.waits(held_back)


def test_a_drain_that_nobody_needs_any_more_is_taken_back() -> None:
    bench = Bench(["a", "b"])
    running = bench.serve("a")
    wanted = bench.ask("b")
    bench.wait(2)
    held_back = bench.ask("a")
    bench.tell(Aborted(wanted))
    bench.wait(0.1)
    assert only(Resume, bench.said)
    assert bench.on(running) == bench.on(held_back) == 0


def test_a_model_with_waiting_requests_gets_a_worker_though_all_others_stay_busy() -> None:
    bench = Bench(["a", "b", "c"], workers=2, quantum=2.0, drain_after=1.0)
    running = keep_busy(bench, "a", "b")
    wanted = bench.ask("c")
    for _ in range(8):
        bench.wait(0.5)
        renew(bench, running)
        bench.settle()
    assert not bench.waits(wanted)


def test_among_always_busy_models_each_has_its_turn_and_keeps_its_worker_for_a_quantum() -> None:
    names = ["a", "b", "c", "d"]
    bench = Bench(names, workers=2, quantum=2.0, drain_after=1.0)
    running: dict[str, list[int]] = {name: [] for name in names}
    came: dict[int, float] = {}
    served: dict[str, int] = dict.fromkeys(names, 0)
    stays: list[float] = []
    for _ in range(300):
        bench.now += 0.1
        bench.clear()
        renew(bench, running)
        bench.wait(0)
        bench.settle()
        for action in bench.decisions():
            match action:
                case Activate(worker, name):
                    came[worker] = bench.now
                    served[name] += 1
                case Drain(worker) | Park(worker):
                    stays.append(bench.now - came.get(worker, bench.now))
    assert min(served.values()) >= 3, f"turns in 30 s: {served}"
    assert max(served.values()) <= 9, f"turns in 30 s: {served}"
    assert min(stays) >= 2.0


def test_priority_is_a_head_start_and_not_a_right_of_way() -> None:
    for later, first in ((2, "high"), (4, "low")):
        bench = Bench([model("low"), model("high", priority=3), "busy"])
        running = bench.serve("busy")
        bench.ask("low")
        bench.now += later
        bench.ask("high")
        bench.wait(0)
        bench.finish(running)
        bench.settle()
        assert bench.active() == {0: first}, f"high came {later} s later, with a head start of 3 s"


def test_a_model_is_not_drained_for_one_over_which_it_has_a_head_start() -> None:
    bench = Bench([model("low"), model("high", priority=5)], quantum=0.0, drain_after=1.0)
    bench.serve("high")
    bench.ask("low")
    bench.wait(4)
    assert not only(Drain, bench.said), "it would come right back"
    bench.wait(1)
    assert only(Drain, bench.said)


# --- faults ---------------------------------------------------------------------------------------------------


def fail_activation(bench: Bench) -> int:
    """The next activation fails; returns the worker."""
    action = bench.take(Activate)
    bench.tell(ActivationFailed(action.worker, action.model, "a file is missing"))
    return action.worker


def test_a_failed_activation_is_tried_on_another_worker() -> None:
    bench = Bench(["a"], workers=2)
    request = bench.ask("a")
    first = fail_activation(bench)
    bench.settle()
    assert bench.on(request) == 1 - first


def test_a_model_that_fails_twice_is_refused_with_a_growing_back_off_and_others_go_on() -> None:
    bench = Bench(["a", "b"], workers=2, backoff=1.0)
    others = bench.serve("b")
    waits = []
    for _ in range(3):
        waiting = bench.ask("a")
        while bench.waits(waiting):
            fail_activation(bench)
        at_once = bench.ask("a")
        assert bench.refused()[waiting].kind == bench.refused()[at_once].kind == "unavailable"
        waits.append(bench.refused()[at_once].retry_after)
        bench.now += waits[-1]
    assert waits == [1.0, 2.0, 4.0]
    assert bench.on(others) is not None
    assert bench.on(bench.ask("b")) is not None


def test_a_success_ends_the_back_off() -> None:
    bench = Bench(["a"], backoff=1.0, idle_timeout=5.0)
    bench.ask("a")
    fail_activation(bench)
    fail_activation(bench)
    bench.now += 1
    bench.finish(bench.serve("a"))
    bench.wait(6)
    bench.settle()
    request = bench.ask("a")
    fail_activation(bench)
    assert bench.waits(request), "one failure is no back-off"
    bench.settle()
    assert bench.on(request) == 0


def test_a_second_replica_that_fails_takes_nothing_from_the_first() -> None:
    bench = Bench(["a"], workers=3, max_running=1)
    bench.serve("a")
    waiting = bench.ask("a")
    for worker in (1, 2):
        bench.activate("a", worker)
    fail_activation(bench)
    fail_activation(bench)
    assert bench.waits(waiting)
    assert bench.refused() == {}


def test_a_worker_that_dies_while_activating_counts_as_a_failure() -> None:
    bench = Bench(["a"], workers=2)
    request = bench.ask("a")
    bench.die(0)
    assert bench.waits(request)
    bench.die(1)
    assert bench.refused()[request].kind == "unavailable"


def test_nobody_waits_for_a_worker_that_dies_again_and_again_while_it_starts() -> None:
    bench = Bench(["a", "b"], workers=2)
    bench.die(1)
    bench.serve("a")
    wanted = bench.ask("b")
    for _ in range(10):
        bench.die(1)
        bench.wait(1)
    assert only(Drain, bench.said)
    assert bench.waits(wanted)


def test_news_of_requests_that_are_over_are_ignored() -> None:
    bench = Bench(["a"])
    request = bench.serve("a")
    bench.finish(request)
    bench.clear()
    for number in (request, 999):
        assert bench.tell(Finished(number, 1)) == []
        assert bench.tell(Aborted(number)) == []
        assert bench.tell(FirstToken(number)) == []
        assert bench.tell(Counted(number, 3)) == []
        assert bench.tell(OperatorGone(number)) == []
    assert bench.active() == {0: "a"}


def test_news_are_noted() -> None:
    bench = Bench(["a"])
    request = bench.serve("a")
    bench.tell(Counted(request, 77))
    bench.tell(Stats(0, 1, 0, 4096, 77, 1))
    assert bench.scheduler.state.requests[request].prompt_tokens == 77
    assert bench.scheduler.state.workers[0].kv_mapped == 4096


def test_a_client_that_leaves_frees_its_place() -> None:
    bench = Bench(["a"], max_running=1)
    running, waiting, gone = bench.serve("a"), bench.ask("a"), bench.ask("a", within=1)
    bench.tell(Aborted(gone))
    bench.tell(Aborted(running))
    assert bench.on(waiting) == 0


# --- host memory ----------------------------------------------------------------------------------------------


def test_weights_are_staged_before_the_activation() -> None:
    bench = Bench(["a"], weights={"a": 5})
    request = bench.ask("a")
    assert [type(action) for action in bench.decisions()] == [Stage]
    bench.settle()
    assert [type(action) for action in bench.decisions()] == [Stage, Activate]
    assert bench.on(request) == 0


def test_one_model_is_staged_at_a_time() -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 5, "b": 5})
    bench.ask("a")
    bench.ask("b")
    assert [action.model for action in only(Stage, bench.said)] == ["a"]
    bench.settle()
    assert [action.model for action in only(Stage, bench.said)] == ["a", "b"]
    assert sorted(bench.active().values()) == ["a", "b"]


def test_the_least_wanted_weights_go_back_to_disk_when_host_memory_is_short() -> None:
    bench = Bench(["a", "b", "c"], workers=3, weights={"a": 4, "b": 4, "c": 4}, idle_timeout=5.0)
    for name in ("a", "b", "a"):
        bench.now += 1
        bench.finish(bench.serve(name))
    bench.wait(6)
    bench.settle()
    bench.serve("c")
    assert [action.model for action in only(Unstage, bench.said)] == ["b"]
    assert bench.staged() == {"a", "c"}


def test_preloaded_and_pinned_weights_are_staged_at_the_start_and_stay() -> None:
    models = [model("a", pinned=True), model("b", preload=True), model("c"), model("d")]
    bench = Bench(models, workers=2, weights={"a": 3, "b": 3, "c": 3, "d": 3}, idle_timeout=5.0)
    assert bench.staged() == {"a", "b"}
    for name in ("c", "d", "c"):
        bench.finish(bench.serve(name))
    assert bench.staged() == {"a", "b", "c"}


def test_mapped_weights_stay_until_their_worker_is_parked() -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 6, "b": 6})
    running = bench.serve("a")
    wanted = bench.ask("b")
    bench.settle()
    bench.wait(3)
    bench.settle()
    assert bench.staged() == {"a"}
    bench.finish(running)
    assert bench.staged() == {"a"}
    bench.settle()
    assert bench.staged() == {"b"}
    assert bench.on(wanted) is not None


def test_memory_freed_for_one_model_is_not_taken_back_by_the_busy_one_that_gave_it() -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 6, "b": 6}, quantum=2.0, drain_after=1.0)
    running = keep_busy(bench, "a")
    wanted = bench.ask("b")
    for _ in range(10):
        bench.wait(0.5)
        renew(bench, running)
        bench.settle()
    assert not bench.waits(wanted)


def test_a_model_larger_than_host_memory_is_refused_at_once() -> None:
    bench = Bench(["a"], weights={"a": 11})
    number = bench.ask("a")
    assert bench.refused()[number].kind == "unavailable"
    command = bench.activate("a")
    assert bench.answers() == {command: False}
    assert bench.decisions() == []


def test_a_model_that_does_not_fit_beside_the_kept_ones_is_refused_at_once() -> None:
    bench = Bench([model("a", preload=True), "b"], weights={"a": 6, "b": 6})
    number = bench.ask("b")
    assert "kept" in bench.refused()[number].reason
    assert bench.staged() == {"a"}


def test_a_model_that_turns_out_larger_makes_room_before_it_is_loaded_again() -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 6, "b": 3}, idle_timeout=5.0)
    bench.finish(bench.serve("a"))
    bench.wait(6)
    bench.settle()
    request = bench.ask("b")
    bench.take(Stage)
    bench.weights["b"] = 7
    bench.tell(Staged("b", 7))
    assert [action.model for action in only(Unstage, bench.said)] == ["b", "a"]
    bench.settle()
    assert bench.on(request) is not None
    assert bench.staged() == {"b"}


def test_a_load_that_fails_refuses_what_waits_and_is_tried_again_later() -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 3, "b": 3}, backoff=1.0)
    request = bench.ask("a")
    bench.take(Stage)
    bench.tell(StageFailed("a", "a file is missing"))
    assert bench.refused()[request].kind == "unavailable"
    bench.serve("b")
    bench.wait(1)
    bench.serve("a")


# --- the reserve of blank workers -----------------------------------------------------------------------------


def test_parked_workers_are_blanked_up_to_the_reserve_the_least_wanted_first() -> None:
    bench = Bench(["a", "b", "c"], workers=3, blank_reserve=1, idle_timeout=5.0)
    for name in ("a", "b", "c"):
        bench.now += 1
        bench.finish(bench.serve(name))
    bench.now += 6
    bench.wait(0)
    bench.settle()
    assert [action.worker for action in only(Blank, bench.said)] == [0]
    phases = [worker.phase for worker in bench.scheduler.state.workers]
    assert phases == ["blank", "parked", "parked"]


def test_each_device_has_its_own_reserve() -> None:
    bench = Bench(["a", "b"], devices=("cpu", "cpu1"), workers=1, blank_reserve=1, idle_timeout=5.0)
    for name in ("a", "b"):
        bench.finish(bench.serve(name))
    bench.wait(6)
    bench.settle()
    assert sorted(action.worker for action in only(Blank, bench.said)) == [0, 1]


# --- the operator ---------------------------------------------------------------------------------------------


def test_an_operator_activates_a_model_and_hears_of_it_once_it_is_active() -> None:
    bench = Bench(["a"])
    command = bench.activate("a")
    assert bench.answers() == {}
    bench.settle()
    assert bench.answers() == {command: True}
    assert bench.active() == {0: "a"}


def test_a_model_that_is_active_already_is_a_success_at_once() -> None:
    bench = Bench(["a"], workers=2)
    bench.serve("a")
    anywhere, there = bench.activate("a"), bench.activate("a", 0)
    assert bench.answers() == {anywhere: True, there: True}


def test_an_operator_activates_a_model_on_the_worker_of_his_choice() -> None:
    bench = Bench(["a", "b"], workers=2)
    running = bench.serve("b")
    command = bench.activate("a", 0)
    bench.settle()
    assert bench.active() == {}, "b is drained first"
    bench.finish(running)
    bench.settle()
    assert bench.active() == {0: "a"}
    assert bench.answers() == {command: True}


def test_a_worker_named_by_the_operator_is_kept_for_him() -> None:
    bench = Bench(["a", "b", "c"], weights={"a": 3, "b": 3, "c": 3})
    command = bench.activate("a", 0)
    refused = bench.activate("b", 0)
    bench.ask("c")
    assert bench.answers() == {refused: False}
    bench.take(Stage)
    bench.tell(Staged("a", 3))
    assert only(Activate, bench.said)[0].model == "a"
    bench.settle()
    assert bench.answers() == {refused: False, command: True}


def test_a_worker_that_does_not_exist_or_serves_a_pinned_model_is_an_error_at_once() -> None:
    bench = Bench([model("a", pinned=True), "b"], workers=2)
    commands = [bench.activate("b", number) for number in (-1, 2, 0)]
    assert bench.answers() == dict.fromkeys(commands, False)
    texts = [action.text for action in only(Answer, bench.said)]
    assert texts[0] == "there is no worker -1; they are 0 to 1"
    assert "pinned" in texts[2]


def test_an_operators_activation_that_fails_is_an_error() -> None:
    bench = Bench(["a"], workers=2)
    anywhere = bench.activate("a")
    fail_activation(bench)
    assert bench.answers() == {}, "another worker is tried"
    fail_activation(bench)
    assert bench.answers() == {anywhere: False}
    there = bench.activate("a", 1)
    fail_activation(bench)
    assert bench.answers() == {anywhere: False, there: False}
    bench.settle()
    assert bench.active() == {}


def test_an_operators_activation_makes_room_in_host_memory() -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 6, "b": 6})
    bench.finish(bench.serve("a"))
    command = bench.activate("b", 1)
    bench.settle()
    assert bench.answers() == {command: True}
    assert bench.active() == {1: "b"}


def test_an_operators_activation_ends_a_back_off() -> None:
    bench = Bench(["a"], workers=2)
    bench.ask("a")
    fail_activation(bench)
    fail_activation(bench)
    command = bench.activate("a")
    bench.settle()
    assert bench.answers() == {command: True}


def test_a_model_that_need_not_leave_after_all_is_active_for_the_operator() -> None:
    bench = Bench(["a", "b"])
    bench.serve("a")
    wanted = bench.ask("b")
    bench.wait(2)
    assert only(Drain, bench.said)
    command = bench.activate("a")
    bench.tell(Aborted(wanted))
    bench.wait(0.1)
    assert only(Resume, bench.said)
    assert bench.answers() == {command: True}


def test_evict_lets_running_requests_finish() -> None:
    bench = Bench(["a"])
    running = bench.serve("a")
    command = bench.evict("a")
    bench.wait(1)
    bench.settle()
    assert bench.on(running) == 0
    assert bench.answers() == {}
    bench.finish(running)
    bench.settle()
    assert bench.answers() == {command: True}
    assert bench.active() == {}


def test_evict_now_aborts_them() -> None:
    bench = Bench(["a"])
    running = bench.serve("a")
    drain, now = bench.evict("a"), bench.evict("a", now=True)
    assert bench.aborted() == [running]
    bench.settle()
    assert bench.answers() == {drain: True, now: True}


def test_what_is_not_active_cannot_be_evicted() -> None:
    bench = Bench(["a"])
    command = bench.evict("a")
    assert bench.answers() == {command: False}


def test_a_model_evicted_while_it_is_activated_is_parked_right_after() -> None:
    bench = Bench(["a"])
    activate, evict = bench.activate("a"), bench.evict("a")
    bench.settle()
    assert bench.answers() == {activate: True, evict: True}
    assert bench.active() == {}


def test_an_eviction_is_answered_when_the_activation_fails_or_the_worker_dies() -> None:
    bench = Bench(["a"], workers=2)
    bench.activate("a")
    first = bench.evict("a")
    fail_activation(bench)
    assert bench.answers()[first]
    bench.settle()
    (worker,) = bench.active()
    bench.serve("a")
    second = bench.evict("a")
    bench.die(worker)
    assert bench.answers()[second]


def test_an_operator_who_is_gone_gets_no_answer_and_wants_nothing() -> None:
    bench = Bench(["a", "b"])
    running = bench.serve("a")
    there = bench.activate("b", 0)
    bench.tell(OperatorGone(there))
    bench.wait(0.1)
    assert only(Resume, bench.said)
    bench.finish(running)
    bench.settle()
    assert bench.active() == {0: "a"}
    assert bench.answers() == {}
