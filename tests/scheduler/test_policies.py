"""The policies against which `prism` is compared: `static`, `space`, `swap` and `serverless`. Sizes are in GiB."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random
from typing import Any

import pytest

from scheduler.actions import Activate, Drain, Park, SetKvLimit
from scheduler.events import FirstToken, WorkerBlank
from scheduler.forecast.kv_pressure import mapped_on
from tests.rig.fake_pool import GIB, Bench, model, only

GPUS = ("cuda:0", "cuda:1", "cuda:2")
MIB = 2**20


def gpus(sizes: Mapping[str, int], policy: str, *, memory: int = 40, devices: int = 2, **fields: Any) -> Bench:
    """Models of these sizes, in host memory. A worker holds 1, or 2 with a model; a token takes 1 MiB of KV cache."""
    chosen: dict[str, Any] = {
        "workers": len(sizes),
        "kv": dict.fromkeys(sizes, MIB),
        "host_memory": 1000 * GIB,
    } | fields
    bench = Bench(
        [model(name, preload=True) for name in sizes],
        weights={name: size * GIB for name, size in sizes.items()},
        memory=memory * GIB,
        devices=GPUS[:devices],
        policy=policy,
        **chosen,
    )
    bench.clear()
    return bench


def places(bench: Bench) -> dict[str, str]:
    """Where each model is active."""
    workers = bench.scheduler.state.workers
    return {name: workers[number].device for number, name in bench.active().items()}


# --- static and space: a place for ever -----------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["static", "space"])
def test_every_model_that_has_a_place_is_active_from_the_start_and_stays(policy: str) -> None:
    bench = gpus({"a": 10, "b": 10, "c": 10}, policy, idle_timeout=5.0)
    before = bench.active()
    assert sorted(before.values()) == ["a", "b", "c"]
    for _ in range(20):
        bench.wait(5)
        bench.settle()
    assert bench.active() == before
    assert not only(Park, bench.said)


@pytest.mark.parametrize("policy", ["static", "space"])
def test_the_largest_goes_first_each_where_there_is_most_room(policy: str) -> None:
    bench = gpus({"small": 4, "large": 20, "middle": 12}, policy)
    at = places(bench)
    assert at["middle"] == at["small"] != at["large"], "20 beside 12 and 4"


def test_a_seed_always_draws_the_same_placement_and_seeds_differ() -> None:
    sizes = dict.fromkeys("abcdef", 3)
    drawn = [places(gpus(sizes, "static", devices=3, placement_seed=seed)) for seed in range(1, 9)]
    again = [places(gpus(sizes, "static", devices=3, placement_seed=seed)) for seed in range(1, 9)]
    assert drawn == again
    assert all(set(placement) == set(sizes) for placement in drawn)
    assert len({tuple(sorted(placement.items())) for placement in drawn}) > 4


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("policy", ["static", "space"])
def test_a_model_without_a_place_is_refused_and_told_so(policy: str, seed: int) -> None:
    bench = gpus({"a": 30, "b": 30, "c": 30}, policy, placement_seed=seed)
    active = bench.active()
    (without,) = {"a", "b", "c"} - set(active.values())
    number = bench.ask(without)
    assert bench.refused()[number].kind == "unavailable"
    assert f"{without} has no place" in bench.refused()[number].reason
    bench.settle()
    assert bench.active() == active
    for name in active.values():
        assert bench.on(bench.ask(name)) is not None


def test_a_model_that_was_killed_comes_back_to_its_place() -> None:
    bench = gpus({"a": 10, "b": 10}, "static")
    before = places(bench)
    for number in list(bench.active()):
        bench.die(number)
        bench.tell(WorkerBlank(number, GIB))
        bench.settle()
    assert places(bench) == before


def under_load(bench: Bench) -> None:
    """a is asked for a lot, with prompts of 2 GiB of KV cache, and nobody for b."""
    for _ in range(6):
        bench.tell(FirstToken(bench.serve("a", prompt=2048)))
        bench.wait(1)
        bench.settle()


def test_static_shares_a_devices_kv_cache_evenly_and_for_ever() -> None:
    bench = gpus({"a": 4, "b": 8}, "static", devices=1, max_running=100)
    assert set(bench.kv_limits().values()) == {(40 - 2 - 2 - 12) // 2}
    bench.clear()
    under_load(bench)
    assert not only(SetKvLimit, bench.said)


def test_space_gives_the_kv_cache_to_whom_has_use_for_it() -> None:
    bench = gpus({"a": 4, "b": 8}, "space", devices=1, max_running=100)
    assert sum(bench.kv_limits().values()) == 40 - 2 - 2 - 12
    under_load(bench)
    limits = {bench.active()[number]: limit for number, limit in bench.kv_limits().items()}
    assert limits["a"] >= 12 > limits["b"] >= 1
    for number in list(bench.scheduler.state.requests):
        bench.finish(number)
    bench.tell(FirstToken(bench.serve("b", prompt=12 * 1024)))
    bench.wait(1)
    bench.settle()
    limits = {bench.active()[number]: limit for number, limit in bench.kv_limits().items()}
    assert limits["b"] >= 12 > limits["a"] >= 1


# --- swap and serverless: a device of one's own ---------------------------------------------------------------


@pytest.mark.parametrize("policy", ["swap", "serverless"])
@pytest.mark.parametrize("seed", range(5))
def test_never_are_two_models_on_a_device_and_everybody_is_served(policy: str, seed: int) -> None:
    random = Random(seed)
    bench = gpus(dict.fromkeys("abcde", 3), policy, workers=3, idle_timeout=2.0, drain_after=1.0, blank_reserve=1)
    state = bench.scheduler.state
    asked: list[int] = []
    for step in range(400):
        if step < 250 and random.random() < 0.4:
            asked.append(bench.ask(random.choice("abcde")))
        bench.wait(0.1)
        if random.random() < 0.7:
            bench.settle()
        for device in state.devices.values():
            assert len(mapped_on(state, device)) <= 1
        for number in sorted(state.requests):
            if bench.on(number) is not None and random.random() < 0.2:
                bench.finish(number)
    bench.settle()
    assert not bench.refused()
    assert sorted(set(bench.dispatched())) == asked
    assert not state.requests


def test_swap_switches_a_device_to_whom_the_earliest_deadline_waits_for() -> None:
    bench = gpus({"a": 3, "b": 3, "c": 3}, "swap", devices=1, drain_after=0.0, quantum=1.0)
    running = bench.serve("a")
    later, sooner = bench.ask("b", within=20), bench.ask("c", within=10)
    bench.wait(1)
    assert only(Drain, bench.said)
    bench.finish(running)
    bench.settle()
    assert bench.on(sooner) is not None
    assert bench.waits(later)


def test_swap_takes_no_device_from_an_idle_model_that_nobody_else_wants() -> None:
    bench = gpus({"a": 3, "b": 3}, "swap", idle_timeout=5.0)
    bench.finish(bench.serve("a"))
    for _ in range(20):
        bench.wait(5)
    assert list(bench.active().values()) == ["a"]


def test_serverless_takes_it_after_the_idle_timeout() -> None:
    bench = gpus({"a": 3, "b": 3}, "serverless", idle_timeout=5.0)
    bench.finish(bench.serve("a"))
    bench.wait(4)
    assert list(bench.active().values()) == ["a"]
    bench.wait(1)
    bench.settle()
    assert not bench.active()


def test_serverless_lets_a_busy_model_keep_its_device_for_the_idle_timeout() -> None:
    bench = gpus({"a": 3, "b": 3}, "serverless", devices=1, idle_timeout=30.0)
    bench.serve("a")
    bench.ask("b")
    bench.wait(29)
    assert not only(Drain, bench.said)
    bench.wait(1)
    assert only(Drain, bench.said)


def test_serverless_prefers_the_device_that_has_the_skeleton() -> None:
    bench = gpus({"a": 3, "b": 3}, "serverless", idle_timeout=5.0)
    for name in "ab":
        bench.finish(bench.serve(name))
    before = places(bench)
    bench.wait(5)
    bench.settle()
    bench.clear()
    for name in "ba":
        bench.serve(name)
    assert places(bench) == before
    assert [action.model for action in only(Activate, bench.said)] == ["b", "a"]
