"""The policy `prism-paper`: placement, eviction and migration by the KV pressure ratio, as it was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.registry import Slo
from scheduler.actions import Activate, Drain, Park
from scheduler.events import Stats
from scheduler.forecast.kv_pressure import kvpr
from scheduler.policies.prism_paper import COOLDOWN, TAU
from tests.rig.fake_pool import GIB, Bench, model, only

MIB = 2**20
GPUS = ("cuda:0", "cuda:1", "cuda:2")


def gpus(sizes: Mapping[str, int], *, devices: int = 2, memory: int = 40, **fields: Any) -> Bench:
    """Models of these sizes, in GiB, as the policy places them at first. A token of each takes 1 MiB of KV cache."""
    tpot = fields.pop("tpot", {})
    models = [model(name, preload=True, slo=Slo(tpot=tpot.get(name, 0.1))) for name in sizes]
    chosen: dict[str, Any] = {"kv": dict.fromkeys(sizes, MIB), "workers": len(sizes), "policy": "prism-paper"} | fields
    bench = Bench(
        models,
        weights={name: size * GIB for name, size in sizes.items()},
        memory=memory * GIB,
        host_memory=1000 * GIB,
        devices=GPUS[:devices],
        **chosen,
    )
    bench.clear()
    return bench


def put(bench: Bench, places: Mapping[str, int]) -> None:
    """Have each model on the worker that is named here, and no other anywhere."""
    for name in list(bench.active().values()):
        bench.evict(name)
    bench.settle()
    for name, worker in places.items():
        bench.activate(name, worker)
        bench.settle()
    assert bench.active() == {worker: name for name, worker in places.items()}
    bench.clear()


def decode(bench: Bench, rates: Mapping[str, int]) -> None:
    """Each of these active models decodes so many tokens, from now on within the last second."""
    for number, name in bench.active().items():
        if name in rates:
            decoded = bench.scheduler.state.workers[number].decoded
            bench.tell(Stats(number, 0, 0, 0, 0, decoded + rates[name]))


def device_of(bench: Bench, name: str) -> int:
    """The index of the device on which alone a model is active."""
    (number,) = [number for number, active in bench.active().items() if active == name]
    return GPUS.index(bench.scheduler.state.workers[number].device)


# --- placement ------------------------------------------------------------------------------------------------


def test_models_are_active_before_anybody_asks_as_far_as_there_is_room() -> None:
    bench = gpus({"a": 10, "b": 10, "c": 20, "d": 30}, memory=40)
    assert sorted(bench.active().values()) == ["a", "b", "c"]
    assert device_of(bench, "a") != device_of(bench, "b"), "with no demand known, where there is most room"


def test_the_kv_pressure_ratio_is_the_published_one() -> None:
    """Sum of token rate x KV bytes per token / TPOT objective, by the memory that weights leave."""
    bench = gpus({"a": 4, "b": 20}, tpot={"a": 0.1, "b": 0.05}, kv={"a": MIB, "b": 2 * MIB})
    put(bench, {"a": 0, "b": 1})
    decode(bench, {"a": 300, "b": 100})
    state = bench.scheduler.state
    assert kvpr(state, state.devices["cuda:0"], bench.now) == pytest.approx(
        (300 * MIB / 0.1 + 100 * 2 * MIB / 0.05) / ((40 - 4 - 20) * GIB)
    )
    assert kvpr(state, state.devices["cuda:1"], bench.now) == 0.0
    assert kvpr(state, state.devices["cuda:1"], bench.now, state.models["a"]) == pytest.approx(
        (300 * MIB / 0.1) / ((40 - 4) * GIB)
    )


@pytest.mark.parametrize(
    ("rates", "tpot_of_b", "there"),
    [
        ({"a": 300, "b": 100}, 0.1, 1),  # 300 / (40 - 4 - 4) against 100 / (40 - 20 - 4)
        ({"a": 150, "b": 100}, 0.1, 0),  # 150 / 32 against 100 / 16
        ({"a": 300, "b": 100}, 0.05, 0),  # 300 / 32 against 2 x 100 / 16
    ],
)
def test_a_model_goes_where_the_ratio_is_lowest_with_it(rates: Mapping[str, int], tpot_of_b: float, there: int) -> None:
    bench = gpus({"a": 4, "b": 20, "c": 4}, tpot={"b": tpot_of_b})
    put(bench, {"a": 0, "b": 3})
    decode(bench, rates)
    bench.serve("c")
    assert device_of(bench, "c") == there


# --- eviction -------------------------------------------------------------------------------------------------


def test_nobody_is_evicted_while_memory_is_not_short() -> None:
    bench = gpus({"a": 4, "b": 4}, idle_timeout=45.0)
    for _ in range(100):
        bench.wait(1)
    assert not only(Park, bench.said)


def test_an_idle_model_makes_way_for_another_only_after_the_idle_timeout() -> None:
    bench = gpus({"a": 30, "b": 30}, devices=1, idle_timeout=45.0, drain_after=1000.0)
    idle, wanted = ("a", "b") if "a" in bench.active().values() else ("b", "a")
    bench.finish(bench.serve(idle))
    waiting = bench.ask(wanted)
    bench.wait(44)
    assert not only(Park, bench.said)
    bench.wait(1)
    bench.settle()
    assert [action.worker for action in only(Park, bench.said)] == [0]
    assert bench.on(waiting) is not None


def test_an_idle_model_makes_way_for_a_neighbours_kv_cache_only_after_the_idle_timeout() -> None:
    bench = gpus({"a": 4, "b": 4}, devices=1, idle_timeout=45.0)
    idle = next(number for number, name in bench.active().items() if name == "a")
    bench.finish(bench.serve("a"))
    bench.serve("b", prompt=30 * 1024)
    bench.wait(44)
    assert not only(Park, bench.said)
    bench.wait(1)
    assert [action.worker for action in only(Park, bench.said)] == [idle], "30 GiB of 28 are needed"


# --- migration ------------------------------------------------------------------------------------------------


def test_a_model_moves_to_where_the_ratio_is_lower() -> None:
    bench = gpus({"a": 4, "b": 4})
    put(bench, {"a": 0, "b": 1})
    decode(bench, {"a": 100, "b": 90})
    bench.wait(5)
    bench.settle()
    assert (device_of(bench, "a"), device_of(bench, "b")) == (0, 1)


@pytest.mark.parametrize(("there", "moves"), [(100 * (1 - TAU) - 10, True), (100 * (1 - TAU) + 1, False)])
def test_it_moves_only_if_the_ratio_there_is_lower_by_more_than_tau(there: float, moves: bool) -> None:
    """A small model beside a large one, which together make 100, and one on the other device."""
    bench = gpus({"large": 0, "small": 0, "other": 0}, memory=1000)
    put(bench, {"large": 0, "small": 1, "other": 3})
    decode(bench, {"large": 95, "small": 5, "other": round(there) - 5})
    bench.wait(5)
    bench.settle()
    assert device_of(bench, "small") == (1 if moves else 0)
    assert (device_of(bench, "large"), device_of(bench, "other")) == (0, 1)


def test_the_source_serves_until_the_target_is_ready() -> None:
    bench = gpus({"a": 4, "b": 4})
    put(bench, {"a": 0, "b": 1})
    decode(bench, {"a": 100, "b": 90})
    running = bench.serve("b")
    bench.wait(5)
    target = only(Activate, bench.said)[-1]
    assert target.model == "b"
    assert not only(Drain, bench.said)
    during = bench.ask("b")
    assert (bench.on(running), bench.on(during)) == (1, 1), "there is no gap"
    bench.settle()
    assert [action.worker for action in only(Drain, bench.said)] == [1]
    assert bench.said.index(target) < bench.said.index(only(Drain, bench.said)[0])
    assert bench.on(bench.ask("b")) == target.worker
    assert bench.phases()[1] == "draining"
    bench.finish(running, during)
    bench.settle()
    assert bench.phases()[1] == "parked"


def test_the_source_is_not_taken_for_somebody_else_before_the_target_is_ready() -> None:
    bench = gpus({"a": 10, "b": 10, "c": 20}, memory=30, idle_timeout=0.0)
    put(bench, {"a": 0, "b": 1})
    decode(bench, {"a": 100, "b": 90})
    bench.wait(5)
    assert [action.model for action in only(Activate, bench.said)] == ["b"]
    bench.activate("c", 2)
    bench.settle(but=Activate)
    bench.wait(2)
    assert [action.worker for action in only(Park, bench.said)] == [0], "c needs the memory of both"
    assert bench.on(bench.ask("b")) == 1


def test_the_source_serves_on_when_its_target_dies() -> None:
    bench = gpus({"a": 4, "b": 4})
    put(bench, {"a": 0, "b": 1})
    decode(bench, {"a": 100, "b": 90})
    bench.wait(5)
    bench.die(only(Activate, bench.said)[-1].worker)
    bench.settle()
    bench.wait(1)
    assert not only(Drain, bench.said)
    assert bench.on(bench.ask("b")) == 1


def test_what_has_moved_stays_for_a_while() -> None:
    bench = gpus({"a": 0, "b": 0, "c": 0}, memory=1000)
    put(bench, {"a": 0, "b": 1, "c": 3})
    decode(bench, {"a": 100, "b": 90, "c": 1})
    bench.wait(5)
    bench.settle()
    moved_at = bench.now
    assert device_of(bench, "b") == 1
    decode(bench, {"c": 5000})
    while bench.now < moved_at + COOLDOWN - 1:
        assert device_of(bench, "b") == 1
        bench.wait(1)
        bench.settle()
    for _ in range(7):
        bench.wait(1)
        bench.settle()
    assert device_of(bench, "b") == 0


# --- how good the greedy placement is -------------------------------------------------------------------------


LOADS = st.lists(st.integers(1, 20), min_size=1, max_size=5)
"""KV weights of models, in tokens a second: they are alike otherwise, and their weights take nothing."""


def weightless(loads: Sequence[int], devices: int) -> Bench:
    """Models all on the first device, each with its load."""
    names = [f"m{index}" for index in range(len(loads))]
    bench = gpus(dict.fromkeys(names, 0), memory=1000, devices=devices)
    put(bench, {name: worker for worker, name in enumerate(names)})
    decode(bench, dict(zip(names, loads, strict=True)))
    return bench


def heaviest(bench: Bench, loads: Sequence[int]) -> int:
    """The largest load of a device."""
    places = [device_of(bench, f"m{index}") for index in range(len(loads))]
    return max(sum(load for load, at in zip(loads, places, strict=True) if at == place) for place in places)


def optimum(loads: Sequence[int], devices: int) -> int:
    """The least that the heaviest device can have, by trying every placement."""
    return min(
        max(sum(load for load, at in zip(loads, places, strict=True) if at == device) for device in range(devices))
        for places in product(range(devices), repeat=len(loads))
    )


@settings(max_examples=30)
@given(LOADS, st.integers(1, 3))
def test_models_placed_in_descending_order_come_within_the_published_bound(loads: list[int], devices: int) -> None:
    """List scheduling, the largest first: no device has more than 4/3 - 1/(3m) times the optimum of m devices."""
    bench = weightless(loads, devices)
    for name in list(bench.active().values()):
        bench.evict(name)
    bench.settle()
    for index in sorted(range(len(loads)), key=lambda index: -loads[index]):
        bench.ask(f"m{index}", prompt=0)
        bench.settle()
    assert heaviest(bench, loads) * 3 * devices <= (4 * devices - 1) * optimum(loads, devices)


@settings(max_examples=30)
@given(LOADS, st.integers(1, 3))
def test_a_global_placement_comes_within_the_bound_but_for_tau(loads: list[int], devices: int) -> None:
    """A model that stays where the ratio is higher by tau keeps the bound of the greedy placement but for that."""
    bench = weightless(loads, devices)
    bench.wait(5)
    bench.settle()
    bound = (4 / 3 - 1 / (3 * devices)) / (1 - TAU)
    assert heaviest(bench, loads) <= bound * optimum(loads, devices)


@settings(max_examples=30)
@given(LOADS, st.integers(1, 3))
def test_a_global_placement_is_the_published_greedy_one(loads: list[int], devices: int) -> None:
    """In descending order to the lowest ratio beside those before; but only if that is lower by more than tau."""
    bench = weightless(loads, devices)
    bench.wait(5)
    bench.settle()
    beside, expected = [0] * devices, {}
    for index in sorted(range(len(loads)), key=lambda index: -loads[index]):
        best = min(range(devices), key=lambda device: (beside[device] + loads[index], device))
        at = best if beside[best] + loads[index] < (1 - TAU) * (beside[0] + loads[index]) else 0
        expected[f"m{index}"] = at
        beside[at] += loads[index]
    assert {name: device_of(bench, name) for name in expected} == expected
