"""The policy `prism`: idle memory holds copies, requests go where they disturb least, and who is missed least leaves.

Sizes are in GiB; a worker holds 1, or 2 with a model. Each device has 40.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import combinations
from random import Random
from typing import Any

import pytest

from config.registry import Slo
from scheduler.actions import Activate, Park
from scheduler.events import Activated, FirstToken, WorkerBlank
from scheduler.forecast.interference import harm_of
from scheduler.learned.profile import Fit, ModelProfile, Profile
from scheduler.policies import prism
from scheduler.state.entities import Request
from scheduler.state.phases import Phase
from tests.rig.fake_pool import GIB, Bench, model, only

MIB = 2**20
GPUS = ("cuda:0", "cuda:1")
TPOT, OBJECTIVE = 0.05, 0.08
"""Seconds per token alone, and at most: beside a busy neighbour it is missed."""
SLOWDOWN = 1.0
TOKENS = 21
"""Of each answer: a second alone."""


def gpus(sizes: Mapping[str, int], *, on_disk: Collection[str] = (), **fields: Any) -> Bench:
    """Models of these sizes on two devices, in host memory but for some; their speeds are known."""
    known = ModelProfile(prefill=Fit(per_unit=1e-4), tpot=TPOT, output_tokens=TOKENS)
    chosen: dict[str, Any] = {"workers": 5, "max_running": 8, "devices": GPUS} | fields
    bench = Bench(
        [model(name, preload=name not in on_disk, slo=Slo(tpot=OBJECTIVE)) for name in sizes],
        weights={name: size * GIB for name, size in sizes.items()},
        kv=dict.fromkeys(sizes, MIB),
        profile=Profile(slowdown=SLOWDOWN, models=dict.fromkeys(sizes, known)),
        memory=40 * GIB,
        host_memory=1000 * GIB,
        policy="prism",
        **chosen,
    )
    rest(bench, 10)
    return bench


def rest(bench: Bench, seconds: float) -> None:
    """Nobody asks for anything."""
    until = bench.now + seconds
    while bench.now < until:
        bench.wait(0.5)
        bench.settle()


def homes(bench: Bench) -> dict[str, tuple[str, ...]]:
    """The devices on which each model is active."""
    active = sorted(bench.active().items())
    return {
        name: tuple(device_of(bench, number) for number, served in active if served == name)
        for name in bench.scheduler.state.models
    }


def device_of(bench: Bench, worker: int | None) -> str:
    assert worker is not None
    return bench.scheduler.state.workers[worker].device


class Load:
    """Requests at steady rates, and workers that take turns: an answer is slower beside busy neighbours."""

    def __init__(self, bench: Bench, rates: Mapping[str, float], seed: int = 1) -> None:
        self._bench = bench
        self._rates = rates
        self._random = Random(seed)
        self._left: dict[int, float] = {}
        """Seconds that the answers under way would still take alone."""

    def run(self, seconds: float) -> None:
        bench, step = self._bench, 0.1
        until = bench.now + seconds
        while bench.now < until:
            for name, rate in self._rates.items():
                if self._random.random() < rate * step:
                    bench.ask(name)
            bench.wait(step)
            bench.settle()
            self._decode(step)

    def _decode(self, step: float) -> None:
        state = self._bench.scheduler.state
        for number in sorted(state.requests):
            worker = self._bench.on(number)
            if worker is None:
                continue
            if number not in self._left:
                self._bench.tell(FirstToken(number))
                self._left[number] = TPOT * (TOKENS - 1)
            here = state.on(state.devices[state.workers[worker].device])
            neighbours = sum(bool(other.running) for other in here) - 1
            self._left[number] -= step / (1 + SLOWDOWN * neighbours)
            if self._left[number] <= 1e-9:
                del self._left[number]
                self._bench.finish(number, tokens=TOKENS)


# --- idle memory ----------------------------------------------------------------------------------------------


def test_models_that_nobody_has_are_activated_ahead_of_their_demand() -> None:
    bench = gpus({"a": 10, "b": 10, "c": 10})
    assert all(homes(bench).values())


def test_then_idle_memory_holds_copies() -> None:
    bench = gpus({"a": 5, "b": 5})
    assert homes(bench) == {"a": GPUS, "b": GPUS}


def test_no_model_has_a_copy_before_every_one_has_a_worker() -> None:
    bench = gpus(dict.fromkeys("abcdefg", 5))
    first = [action.model for action in only(Activate, bench.said)][:7]
    assert sorted(first) == list("abcdefg")


def test_copies_leave_memory_for_kv_cache() -> None:
    bench = gpus({"a": 14, "b": 14, "c": 14})
    assert all(len(at) == 1 for at in homes(bench).values()), "two on a device would leave less than six for a third"
    number = bench.serve("a", prompt=4 * 1024)
    assert bench.on(number) is not None


def test_what_an_operator_has_evicted_comes_back_when_it_is_asked_for_and_not_before() -> None:
    bench = gpus({"a": 5, "b": 5})
    bench.evict("a")
    bench.settle()
    rest(bench, 10)
    assert homes(bench) == {"a": (), "b": GPUS}
    bench.finish(bench.serve("a"))
    rest(bench, 10)
    assert homes(bench) == {"a": GPUS, "b": GPUS}


def test_a_model_that_is_on_disk_is_not_loaded_for_a_copy() -> None:
    bench = gpus({"a": 5, "b": 5}, on_disk="b")
    assert homes(bench)["b"] == ()


@pytest.mark.parametrize("reserve", [1, 2])
def test_never_are_fewer_workers_blank_than_the_reserve(reserve: int) -> None:
    bench = gpus(dict.fromkeys("abcdefgh", 1), workers=4, blank_reserve=reserve)
    for device in bench.scheduler.state.devices.values():
        phases = [worker.phase for worker in bench.scheduler.state.on(device)]
        assert phases.count(Phase.BLANK) == reserve
        assert phases.count(Phase.ACTIVE) == 4 - reserve


def test_memory_is_filled_by_one_activation_at_a_time_on_each_device() -> None:
    bench = gpus({"a": 5, "b": 5, "c": 5})
    state = bench.scheduler.state
    for worker in state.workers:
        bench.die(worker.number)
    for worker in state.workers:
        bench.tell(WorkerBlank(worker.number, bench.held["blank"]))
    for _ in range(20):
        bench.wait(0.5)
        for device in state.devices.values():
            assert sum(worker.phase in (Phase.PREPARING, Phase.ACTIVATING) for worker in state.on(device)) <= 1
        if any(isinstance(action, Activate) for action in bench.pending):
            begun = bench.take(Activate)
            bench.tell(Activated(begun.worker, begun.model, 1.0, bench.held["active"]))
        bench.settle(but=Activate)
    assert all(len(at) == 2 for at in homes(bench).values())


# --- who makes way --------------------------------------------------------------------------------------------


def test_a_copy_makes_way_for_a_model_that_is_wanted() -> None:
    bench = gpus({"a": 10, "b": 10, "wanted": 14}, on_disk=["wanted"])
    assert all(len(homes(bench)[name]) == 2 for name in "ab")
    bench.clear()
    bench.serve("wanted")
    assert len(only(Park, bench.said)) == 1
    assert all(homes(bench).values()), "the copy went, both models are there"


def test_a_copy_leaves_before_the_last_of_a_model_even_if_it_was_used_later() -> None:
    bench = gpus({"a": 10, "b": 10, "c": 10, "wanted": 14}, on_disk=["wanted"])
    assert homes(bench) == {"a": GPUS, "b": GPUS[:1], "c": GPUS[1:], "wanted": ()}
    bench.finish(bench.serve("b"))
    bench.now += 5
    beside = bench.serve("c")
    used = bench.serve("a")
    assert device_of(bench, bench.on(used)) == GPUS[0]
    bench.finish(used, beside)
    bench.now += 1
    command = bench.activate("wanted", 2)
    bench.settle()
    assert bench.answers()[command]
    assert homes(bench) == {"a": GPUS[1:], "b": GPUS[:1], "c": GPUS[1:], "wanted": GPUS[:1]}


def test_of_last_ones_the_model_that_is_asked_for_least_leaves_even_if_it_was_used_later() -> None:
    bench = gpus({"often": 15, "seldom": 15, "wanted": 15}, on_disk=["wanted"], devices=GPUS[:1])
    bench.finish(bench.serve("seldom"))
    bench.now += 70
    for _ in range(40):
        bench.finish(bench.serve("often"))
        bench.now += 1
    bench.finish(bench.serve("seldom"))
    bench.now += 1
    bench.serve("wanted")
    assert sorted(bench.active().values()) == ["often", "wanted"]


def test_an_idle_model_stays_while_nobody_has_use_for_its_memory() -> None:
    bench = gpus({"a": 5, "b": 5}, idle_timeout=5.0)
    before = bench.active()
    rest(bench, 200)
    assert bench.active() == before
    assert not only(Park, bench.said)


def test_an_idle_copy_makes_way_for_a_neighbours_kv_cache() -> None:
    bench = gpus({"a": 5, "b": 5}, devices=GPUS[:1])
    bench.serve("a", prompt=24 * 1024)
    rest(bench, 5)
    assert list(bench.active().values()) == ["a"]


def test_it_does_not_come_back_while_that_kv_cache_is_needed() -> None:
    bench = gpus({"a": 5, "b": 5}, devices=GPUS[:1])
    bench.serve("a", prompt=24 * 1024)
    rest(bench, 5)
    bench.clear()
    rest(bench, 30)
    assert not bench.decisions()


def meetings(bench: Bench) -> int:
    """Pairs of models that are together on more than one device: whoever asks for one may find both busy everywhere."""
    at = homes(bench)
    return sum(len(set(at[one]) & set(at[other])) > 1 for one, other in combinations(sorted(at), 2))


def test_copies_are_not_beside_the_same_models_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, many = dict.fromkeys("abcdefgh", 6), {"devices": (*GPUS, "cuda:2", "cuda:3"), "workers": 8}
    chosen = gpus(sizes, **many)
    monkeypatch.setattr(prism, "CHOICE", 1)
    as_they_come = gpus(sizes, **many)
    assert sorted(map(len, homes(chosen).values())) == sorted(map(len, homes(as_they_come).values()))
    assert meetings(chosen) == 0 < meetings(as_they_come)


# --- where a request goes -------------------------------------------------------------------------------------


def test_a_request_goes_where_fewer_neighbours_are_busy() -> None:
    bench = gpus({"a": 5, "b": 5, "c": 5})
    for first, second in (("b", "a"), ("c", "b"), ("a", "c")):
        busy = bench.serve(first)
        there = device_of(bench, bench.on(busy))
        request = bench.serve(second)
        assert device_of(bench, bench.on(request)) != there
        bench.finish(busy, request)
        rest(bench, 30)


def test_requests_of_one_model_share_a_worker_rather_than_disturb_a_busy_neighbour() -> None:
    bench = gpus({"a": 5, "b": 5})
    busy = bench.serve("b")
    bench.tell(FirstToken(busy))
    requests = [bench.serve("a") for _ in range(3)]
    for number in requests:
        bench.tell(FirstToken(number))
    assert {device_of(bench, bench.on(number)) for number in requests} == (
        set(GPUS) - {device_of(bench, bench.on(busy))}
    )


def test_a_short_request_disturbs_a_neighbour_less_than_a_long_one() -> None:
    bench = gpus({"a": 5, "b": 5})
    state = bench.scheduler.state
    busy = bench.serve("b")
    bench.tell(FirstToken(busy))
    there = device_of(bench, bench.on(busy))
    worker = next(w for w in state.on(state.devices[there]) if w.model == "a")
    request = Request(99, "a", arrived=bench.now, deadline=bench.now + 1, prompt_tokens=10)
    long = harm_of(state, worker, request, bench.now)
    state.models["a"].demand.output_tokens = 1.0
    assert harm_of(state, worker, request, bench.now) < long


# --- in the long run ------------------------------------------------------------------------------------------


def test_an_idle_model_makes_way_for_one_that_suffers() -> None:
    """Two busy models share a device, and make each other late; idle ones fill the other."""
    bench = gpus({"a": 12, "b": 12, "c": 12, "d": 12}, workers=3)
    together = [name for name, at in homes(bench).items() if at == homes(bench)["a"]]
    assert len(together) == 2
    assert all(len(at) == 1 for at in homes(bench).values()), "there is no room for copies"
    bench.clear()
    Load(bench, dict.fromkeys(together, 1.5)).run(120)
    assert {device for name in together for device in homes(bench)[name]} == set(GPUS)
    assert all(homes(bench)[name] for name in together)


@pytest.mark.parametrize("seed", range(3))
def test_who_makes_way_gets_the_place_that_is_left(seed: int) -> None:
    """The two busy ones part, and nobody has to do without: the others are asked for as well, now and then."""
    bench = gpus({"a": 12, "b": 12, "c": 12, "d": 12})
    Load(bench, dict.fromkeys("abcd", 0.1), seed).run(60)
    together = [name for name, at in homes(bench).items() if at == homes(bench)["a"]]
    bench.clear()
    Load(bench, {name: 1.5 if name in together else 0.1 for name in "abcd"}, seed).run(120)
    rest(bench, 5)
    assert {len(at) for at in homes(bench).values()} == {1}
    assert {device for name in together for device in homes(bench)[name]} == set(GPUS)
    assert len(only(Activate, bench.said)) == 2


def test_models_part_as_well_when_all_workers_beside_the_reserve_are_parked() -> None:
    bench = gpus({"a": 12, "b": 12, "c": 12, "d": 12}, blank_reserve=1)
    for pair in list(combinations("abcd", 2)) * 2:
        Load(bench, dict.fromkeys(pair, 1.5)).run(60)
        assert {device for name in pair for device in homes(bench)[name]} == set(GPUS), pair
    phases = [worker.phase for worker in bench.scheduler.state.workers]
    assert phases.count(Phase.BLANK) == len(GPUS)
    assert phases.count(Phase.PARKED) > 0


def test_who_suffers_gets_one_more_place_at_a_time() -> None:
    devices = ("cuda:0", "cuda:1", "cuda:2", "cuda:3")
    bench = gpus(dict.fromkeys("abcdefgh", 12), workers=3, devices=devices)
    together = [name for name, at in homes(bench).items() if at == homes(bench)["a"]]
    load = Load(bench, dict.fromkeys(together, 2.0))
    came = []
    for _ in range(30):
        bench.clear()
        load.run(4)
        came += [action.model for action in only(Activate, bench.said)]
        assert len(only(Activate, bench.said)) == len({action.model for action in only(Activate, bench.said)})
    assert set(came) & set(together)


def test_nobody_moves_where_nobody_suffers() -> None:
    bench = gpus({"a": 12, "b": 12, "c": 12, "d": 12}, workers=3)
    before = homes(bench)
    alone = {at[0]: name for name, at in before.items()}
    bench.clear()
    Load(bench, dict.fromkeys(alone.values(), 1.5)).run(120)
    assert homes(bench) == before
    assert not bench.decisions()


@pytest.mark.parametrize("seed", range(3))
def test_under_a_steady_load_hardly_anything_moves(seed: int) -> None:
    """Six models that do not all fit twice, the more popular ones asked for often."""
    sizes = {"a": 6, "b": 6, "c": 6, "d": 9, "e": 9, "f": 9}
    bench = gpus(sizes, blank_reserve=1)
    load = Load(bench, {name: 1.2 / (rank + 1) for rank, name in enumerate(sizes)}, seed)
    load.run(120)
    bench.clear()
    load.run(300)
    assert len(only(Activate, bench.said)) <= len(sizes)
    assert not bench.refused()


def test_whoever_is_popular_now_is_there_while_demand_rotates() -> None:
    bench = gpus({"a": 15, "b": 15, "c": 15, "d": 15, "e": 15}, workers=3)
    for pair in ("ab", "cd", "ea", "bc"):
        Load(bench, dict.fromkeys(pair, 1.0)).run(60)
        assert all(homes(bench)[name] for name in pair)
    assert not bench.refused()
