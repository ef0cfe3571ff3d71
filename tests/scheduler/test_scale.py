"""What is noted of a large pool, so that a decision does not look at every worker and model of it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from bench.decision.command import measure
from bench.decision.pool import CrowdedPool
from config.registry import PolicyName
from scheduler.policies.cheapest_worker import Cost, Prices, _by_cost
from scheduler.policies.plan_cache import PlanCache
from scheduler.state.entities import Worker
from scheduler.state.phase_index import PhaseIndex
from scheduler.state.phases import Phase
from tests.rig.fake_pool import GIB, Bench

WEIGHTS = {"a": 4 * GIB, "b": 4 * GIB}


def workers(number: int) -> list[Worker]:
    return [Worker(index, "cpu") for index in range(number)]


# --- workers by phase -------------------------------------------------------------------------------------------


def test_a_worker_is_listed_under_its_phase_alone() -> None:
    pool = workers(3)
    index = PhaseIndex(pool)

    index.enter(pool[1], Phase.BLANK)

    assert index.numbers(Phase.STARTING) == {0, 2}
    assert index.numbers(Phase.BLANK) == {1}


def test_workers_of_several_phases_come_in_the_order_of_their_numbers() -> None:
    pool = workers(4)
    index = PhaseIndex(pool)
    for number, phase in ((3, Phase.PARKED), (0, Phase.BLANK), (2, Phase.BLANK)):
        index.enter(pool[number], phase)

    assert [worker.number for worker in index.within((Phase.PARKED, Phase.BLANK))] == [0, 2, 3]


# --- views of a device ------------------------------------------------------------------------------------------


def test_a_view_is_kept_until_something_changes_on_its_device() -> None:
    bench = Bench(["a", "b"], weights=WEIGHTS, memory=20 * GIB, host_memory=9 * GIB, devices=("cuda:0", "cuda:1"))
    state = bench.scheduler.state
    bench.serve("a")
    (mine,) = [state.devices[w.device] for w in state.workers if w.model == "a"]
    other = next(device for device in state.devices.values() if device is not mine)
    views = state.view(mine), state.view(other)

    assert state.view(mine) is views[0]
    bench.evict("a", now=True)

    assert state.view(mine) is not views[0]
    assert state.view(other) is views[1]


def test_a_view_follows_the_ledger() -> None:
    bench = Bench(["a"], weights={"a": 4 * GIB}, memory=20 * GIB, workers=2)
    state = bench.scheduler.state
    (device,) = state.devices.values()
    before = state.view(device).room

    device.ledger.measure(0, device.ledger[0].held + GIB)

    assert state.view(device).room == before - GIB
    assert state.view(device) == state.fresh_view(device)


def test_host_memory_is_summed_up_as_models_come_and_go() -> None:
    bench = Bench(["a", "b"], weights=WEIGHTS, host_memory=5 * GIB)
    host = bench.scheduler.state.host

    bench.finish(bench.serve("a"))
    assert host.used == 4 * GIB
    bench.finish(bench.serve("b"))

    assert bench.staged() == {"b"}
    assert (host.used, host.kept) == (4 * GIB, 0)


# --- the cheapest worker ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_workers_come_in_the_order_of_their_cost_whatever_the_bounds(seed: int) -> None:
    random = Random(seed)
    pool = workers(30)
    costs = {worker.number: float(random.randrange(8)) for worker in pool}
    bounds = sorted((float(random.randint(0, int(costs[w.number]))), w.number) for w in pool)

    def narrowed(bound: Cost, worker: Worker) -> Cost:
        (least,) = bound
        assert isinstance(least, float)
        return (random.uniform(least, costs[worker.number]),)

    prices = Prices(0.0, lambda worker: (costs[worker.number],), narrowed)
    found = [w.number for w in _by_cost((((bound,), pool[number]) for bound, number in bounds), prices)]

    assert found == sorted(costs, key=lambda number: (costs[number], number))


def test_who_cannot_be_the_cheapest_is_not_asked_for_its_cost() -> None:
    pool, asked = workers(100), []

    def cost(worker: Worker) -> Cost:
        asked.append(worker.number)
        return (worker.number + 0.5,)

    def bounded() -> Iterator[tuple[Cost, Worker]]:
        return (((float(worker.number),), worker) for worker in pool)

    first = next(_by_cost(bounded(), Prices(0.0, cost, lambda bound, worker: bound)))

    assert first is pool[0]
    assert asked == [0]


# --- what a plan has asked --------------------------------------------------------------------------------------


def test_an_answer_holds_until_a_worker_changes_its_phase() -> None:
    bench, memo = Bench(["a"]), PlanCache()
    state, answers = bench.scheduler.state, iter(range(10))

    assert [memo.of(state, "what", lambda: next(answers)) for _ in range(2)] == [0, 0]
    bench.ask("a")

    assert memo.of(state, "what", lambda: next(answers)) == 1
    memo.forget()
    assert memo.of(state, "what", lambda: next(answers)) == 2


# --- the benchmark ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["prism", "prism-paper", "lru", "serverless"])
def test_a_crowded_pool_decides_and_keeps_its_books(policy: PolicyName) -> None:
    pool = CrowdedPool(policy, models=24, gpus=8, workers_per_gpu=3, validate=True)
    decided = []

    pool.run(300, lambda kind, seconds, has_decided: decided.append(has_decided))

    assert any(decided)
    assert any(model.workers for model in pool.scheduler.state.models.values())


def test_the_benchmark_tells_kinds_of_events_apart() -> None:
    figures = measure("prism", models=24, gpus=8, workers_per_gpu=3, events=300)

    assert {"Arrived, served", "FirstToken", "Stats", "Tick", "global decision"} <= set(figures)
    assert all(found["median"] <= found["worst"] for found in figures.values())
