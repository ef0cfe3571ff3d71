"""Local admission: a device's requests go by what can still be met, a few at a time.

A prompt token takes 10 ms here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.actions import Dispatch
from scheduler.dispatch.admission import PATIENCE
from scheduler.dispatch.moore_hodgson import Job, on_time
from scheduler.events import Aborted, FirstToken, WorkerBlank
from scheduler.learned.profile import Fit, ModelProfile, Profile
from tests.rig.fake_pool import GIB, Bench, model, only

PER_TOKEN = 0.01
"""Seconds of prefill; neighbours do not slow each other down."""


def device(*models: Any, output: float = 0.0, **fields: Any) -> Bench:
    """Models that are active on one device, whose prefill is known."""
    names = [made if isinstance(made, str) else made.name for made in models]
    known = ModelProfile(prefill=Fit(per_unit=PER_TOKEN), output_tokens=output)
    profile = Profile(slowdown=0.0, models=dict.fromkeys(names, known))
    settings: dict[str, Any] = {"workers": len(names), "max_running": 100, "policy": "prism-paper"} | fields
    bench = Bench(models, profile=profile, **settings)
    bench.clear()
    return bench


def ask(bench: Bench, name: str, *, seconds: float, within: float = 100.0) -> int:
    """A request whose prefill takes so long."""
    return bench.ask(name, within=within, prompt=round(seconds / PER_TOKEN))


def under_way(bench: Bench) -> list[int]:
    """Requests that were sent and have no token yet."""
    known = bench.scheduler.state.requests
    return [number for number in bench.dispatched() if number in known and known[number].first_token_at is None]


def prefill(bench: Bench) -> float:
    """The device prefills what it was sent first, and the answer ends with its first token; returns when that was."""
    number = under_way(bench)[0]
    bench.now += bench.scheduler.state.requests[number].prompt_tokens * PER_TOKEN
    bench.tell(FirstToken(number))
    bench.finish(number, tokens=1)
    return bench.now


def run(bench: Bench) -> dict[int, float]:
    """All that waits is served; returns the requests in their order, with the times of their first tokens."""
    first: dict[int, float] = {}
    while under_way(bench):
        number = under_way(bench)[0]
        first[number] = prefill(bench)
    assert not bench.scheduler.state.requests
    return first


# --- the order ------------------------------------------------------------------------------------------------


def test_of_a_devices_models_the_request_that_is_due_first_goes_first() -> None:
    bench = device("a", "b", "c")
    ask(bench, "a", seconds=1)
    late, soon, later = (ask(bench, n, seconds=1, within=w) for n, w in (("a", 30), ("b", 10), ("c", 20)))
    assert list(run(bench))[1:] == [soon, later, late]


def test_the_longest_goes_last_when_one_must_be_late() -> None:
    bench = device("a", "b", "c", "d")
    bench.clear()
    ask(bench, "a", seconds=1)
    rows = (("a", 1, 5.5), ("b", 4, 6.5), ("c", 2, 7.5), ("d", 3, 9.5))
    one, longest, two, three = (ask(bench, name, seconds=seconds, within=within) for name, seconds, within in rows)
    assert list(run(bench))[1:] == [one, two, three, longest]


def test_a_more_important_model_is_not_late_for_a_less_important_one() -> None:
    bench = device("a", model("b", priority=1))
    ask(bench, "a", seconds=1)
    short, important = ask(bench, "a", seconds=1, within=4.5), ask(bench, "b", seconds=4, within=5.5)
    assert list(run(bench))[1:] == [important, short]


def test_what_cannot_be_met_any_more_goes_behind_what_can() -> None:
    bench = device("a", "b")
    ask(bench, "a", seconds=5)
    missed, met = ask(bench, "a", seconds=1, within=3), ask(bench, "b", seconds=1, within=20)
    assert list(run(bench))[1:] == [met, missed]


def test_what_cannot_be_met_is_refused_if_the_registry_says_so() -> None:
    bench = device("a", "b", late="refuse")
    first = ask(bench, "a", seconds=5)
    missed, met = ask(bench, "a", seconds=1, within=3), ask(bench, "b", seconds=1, within=20)
    bench.wait(4)
    assert bench.refused()[missed].kind == "late"
    bench.tell(Aborted(first))
    assert bench.on(met) is not None


def test_nobody_waits_for_ever_behind_those_who_can_still_be_met() -> None:
    bench = device("a", "b")
    ask(bench, "b", seconds=2)
    ask(bench, "b", seconds=1)
    deadline = bench.now + 1
    hopeless = ask(bench, "a", seconds=1, within=1)
    while bench.waits(hopeless):
        ask(bench, "b", seconds=1, within=5)
        prefill(bench)
        assert bench.now < deadline + PATIENCE + 3, "it starves"
    assert bench.now > deadline + PATIENCE / 2, "the others went first for a while"


ROWS = st.tuples(st.sampled_from("abc"), st.integers(1, 5), st.integers(1, 20))
"""Model, seconds of prefill, seconds to the deadline."""


@given(st.integers(1, 5), st.lists(ROWS, max_size=5))
def test_as_many_deadlines_are_met_as_can_be(first: int, rows: Sequence[tuple[str, int, int]]) -> None:
    bench = device("a", "b", "c")
    free = bench.now + first
    ask(bench, "a", seconds=first)
    jobs = {}
    for name, seconds, within in rows:
        number = ask(bench, name, seconds=seconds, within=within + 0.5)
        jobs[number] = Job(number, bench.now + within + 0.5, seconds)
    ended = run(bench)
    met = [number for number, job in jobs.items() if ended[number] <= job.deadline]
    assert len(met) == len(on_time(jobs.values(), free).kept)


# --- short queues in the engines ------------------------------------------------------------------------------


def booked(bench: Bench) -> float:
    """Seconds of prefill that were sent and are not done."""
    return sum(bench.scheduler.state.requests[number].prompt_tokens for number in under_way(bench)) * PER_TOKEN


def test_an_idle_device_is_sent_a_request_at_once_however_long_it_takes() -> None:
    bench = device("a")
    number = ask(bench, "a", seconds=50)
    assert bench.on(number) is not None


def test_no_more_is_sent_ahead_than_the_registry_says() -> None:
    bench = device("a", "b", ahead=0.25)
    for name in "abababab":
        ask(bench, name, seconds=0.1)
    assert bench.dispatched() == [1, 2, 3]
    while under_way(bench):
        assert booked(bench) < 0.25 + 0.1 + 1e-6
        prefill(bench)


def test_what_is_due_sooner_overtakes_what_waits_but_not_what_was_sent() -> None:
    bench = device("a", "b", ahead=0.25)
    for _ in range(5):
        ask(bench, "a", seconds=1, within=100)
    urgent = ask(bench, "b", seconds=1, within=10)
    assert list(run(bench)).index(urgent) == 1


def test_an_answer_that_ends_without_a_token_makes_room_for_the_next() -> None:
    bench = device("a")
    gone, waiting = ask(bench, "a", seconds=10), ask(bench, "a", seconds=1)
    assert bench.waits(waiting)
    bench.tell(Aborted(gone))
    assert bench.on(waiting) is not None


def test_time_alone_makes_room_too() -> None:
    """A first token that does not come is no reason to send nothing any more."""
    bench = device("a")
    ask(bench, "a", seconds=2)
    waiting = ask(bench, "a", seconds=1)
    bench.wait(1)
    assert bench.waits(waiting)
    bench.wait(1)
    assert bench.on(waiting) is not None


def test_one_devices_queue_does_not_hold_up_anothers() -> None:
    bench = device("a", "b", devices=("cuda:0", "cuda:1"), workers=1)
    ask(bench, "a", seconds=10)
    ask(bench, "a", seconds=10)
    assert bench.on(ask(bench, "b", seconds=10)) is not None


# --- room on the workers --------------------------------------------------------------------------------------


def test_a_model_whose_worker_is_full_does_not_hold_up_the_others_of_its_device() -> None:
    bench = device("a", "b", max_running=1)
    running = ask(bench, "a", seconds=0.1)
    bench.tell(FirstToken(running))
    aside = [ask(bench, "a", seconds=0.1, within=2) for _ in range(30)]
    beside = ask(bench, "b", seconds=0.1, within=50)
    assert bench.on(beside) is not None
    assert all(bench.waits(number) for number in aside)
    for done in (beside, running):
        bench.tell(FirstToken(done))
        bench.finish(done)
    assert list(run(bench)) == aside


def test_what_arrives_or_leaves_while_its_worker_is_full_keeps_its_place() -> None:
    bench = device("a", max_running=1)
    running = ask(bench, "a", seconds=0.1)
    bench.tell(FirstToken(running))
    second, gone = ask(bench, "a", seconds=0.1, within=20), ask(bench, "a", seconds=0.1, within=5)
    first = ask(bench, "a", seconds=0.1, within=10)
    bench.tell(Aborted(gone))
    bench.finish(running)
    assert list(run(bench)) == [first, second]


def with_kv(*names: str) -> Bench:
    """Models on a device that has 8 GiB for KV cache; a token takes 0.25 GiB, and four are expected of an answer."""
    sizes = dict.fromkeys(names, 2 * GIB)
    kv = dict.fromkeys(names, GIB // 4)
    models = [model(name, preload=True) for name in names]
    memory = (8 + 4 * len(names)) * GIB
    bench = device(*models, output=4, weights=sizes, kv=kv, host_memory=100 * GIB, memory=memory, ahead=1000)
    assert sum(bench.kv_limits().values()) == 8
    return bench


def test_a_request_whose_kv_cache_does_not_fit_waits_until_another_one_ends() -> None:
    bench = with_kv("a")
    first, second = bench.ask("a", prompt=12), bench.ask("a", prompt=12)
    assert bench.on(second) is not None, "twice 16 tokens are 8 GiB"
    third = bench.ask("a", prompt=12)
    bench.tell(FirstToken(first))
    bench.settle()
    assert bench.waits(third)
    bench.finish(first, tokens=4)
    assert bench.on(third) is not None


def test_a_request_that_runs_alone_may_have_any_kv_cache() -> None:
    bench = with_kv("a")
    first, large = bench.ask("a", prompt=12), bench.ask("a", prompt=60)
    assert bench.waits(large), "64 tokens are 16 GiB"
    bench.finish(first, tokens=4)
    assert bench.on(large) is not None, "nobody makes more room for it by waiting"


def test_one_whose_kv_cache_lacks_does_not_hold_up_other_models() -> None:
    bench = with_kv("a", "b")
    bench.ask("a", prompt=60)
    held_back, other = bench.ask("a", prompt=60, within=5), bench.ask("b", prompt=2, within=50)
    assert bench.waits(held_back)
    assert bench.on(other) is not None


def test_what_waited_for_its_kv_cache_is_sent_when_a_neighbour_gives_its_own() -> None:
    bench = with_kv("a", "b")
    bench.ask("a", prompt=14)
    waiting = bench.ask("a", prompt=14)
    bench.settle()
    assert bench.waits(waiting), "36 tokens are 9 GiB, and b has some of the eight"
    bench.evict("b")
    bench.settle()
    assert bench.on(waiting) is not None


def test_the_promise_of_kv_cache_ends_with_the_answer_or_the_worker() -> None:
    bench = with_kv("a")
    (worker,) = bench.scheduler.state.workers
    number = bench.ask("a", prompt=12)
    assert worker.replica.kv_promised == 4 * GIB
    bench.finish(number, tokens=4)
    assert worker.replica.kv_promised == 0
    bench.ask("a", prompt=12)
    bench.die(worker.number)
    assert worker.replica.kv_promised == 0


# --- copies, deaths, evictions --------------------------------------------------------------------------------


def two_copies(**fields: Any) -> Bench:
    bench = device("a", "b", devices=("cuda:0", "cuda:1"), workers=2, **fields)
    for worker in (0, 2):
        if worker not in bench.active():
            bench.activate("a", worker)
            bench.settle()
    assert list(bench.active().values()).count("a") == 2
    bench.clear()
    return bench


def test_a_request_of_a_model_with_two_copies_is_sent_once() -> None:
    bench = two_copies()
    numbers = [ask(bench, "a", seconds=1) for _ in range(10)]
    assert len(bench.dispatched()) == 2, "one to each"
    assert len({bench.on(number) for number in bench.dispatched()}) == 2
    assert list(run(bench)) == numbers
    assert sorted(bench.dispatched()) == numbers


def test_a_request_with_two_copies_goes_to_whichever_device_has_time_first() -> None:
    bench = two_copies()
    long, short, waiting = (ask(bench, "a", seconds=seconds) for seconds in (10, 2, 1))
    free = bench.on(short)
    bench.now += 2
    bench.tell(FirstToken(short))
    assert bench.on(waiting) == free != bench.on(long)


def test_nothing_is_lost_when_one_of_two_copies_dies() -> None:
    bench = two_copies()
    numbers = [ask(bench, "a", seconds=1) for _ in range(6)]
    dead = bench.on(numbers[0])
    assert dead is not None
    bench.die(dead)
    assert bench.waits(numbers[0]), "its answer had not begun"
    assert sorted(served(bench)) == numbers


def served(bench: Bench) -> list[int]:
    """What runs or waits is served to the end, by the workers that there are or come."""
    done = []
    for _ in range(100):
        bench.settle()
        bench.wait(0.5)
        bench.settle()
        state = bench.scheduler.state
        apart = {number for isolation in state.isolations.values() for number in isolation.running}
        running = [number for number in sorted(state.requests) if bench.on(number) is not None or number in apart]
        for number in running:
            bench.tell(FirstToken(number))
            bench.finish(number, tokens=1)
            done.append(number)
        if not bench.scheduler.state.requests:
            return done
    raise AssertionError(f"{sorted(bench.scheduler.state.requests)} are not served")


WAYS_TO_WAIT = pytest.mark.parametrize(("max_running", "seconds"), [(1, 0.01), (100, 1)])
"""For room on the worker, or for the device."""


@WAYS_TO_WAIT
def test_nothing_is_lost_when_the_worker_dies_while_requests_wait(max_running: int, seconds: float) -> None:
    bench = device("a", "b", max_running=max_running)
    numbers = [ask(bench, name, seconds=seconds) for name in "aaabbb"]
    worker = bench.on(numbers[0])
    assert worker is not None
    bench.die(worker)
    bench.tell(WorkerBlank(worker))
    assert sorted(served(bench)) == numbers
    assert not bench.refused()


@pytest.mark.parametrize("now", [True, False])
@WAYS_TO_WAIT
def test_nothing_is_lost_when_the_worker_is_evicted_while_requests_wait(
    max_running: int, seconds: float, now: bool
) -> None:
    bench = device("a", "b", max_running=max_running)
    numbers = [ask(bench, name, seconds=seconds) for name in "aaabbb"]
    bench.evict("a", now=now)
    aborted = bench.aborted()
    assert aborted == (numbers[:1] if now else []), "what runs is ended only if the operator says so"
    assert sorted(served(bench)) == numbers[len(aborted) :]
    assert not bench.refused()
    assert len(set(bench.dispatched())) == len(only(Dispatch, bench.said))


def test_who_leaves_while_the_model_is_away_is_not_looked_for_when_it_is_back() -> None:
    bench = device("a", max_running=1)
    running, gone, stays = (ask(bench, "a", seconds=0.01) for _ in range(3))
    bench.evict("a")
    bench.tell(Aborted(gone))
    assert served(bench) == [running, stays]
