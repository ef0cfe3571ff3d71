"""Free workers come from the cheapest on, and not all of them have to be priced for that."""

from __future__ import annotations

import random

import pytest

from scheduler.policies import cheapest_worker
from scheduler.policies.cheapest_worker import Cost, FreeWorkers, Prices
from scheduler.state.entities import Worker
from tests.rig.fake_pool import Bench

DEVICES = tuple(f"cuda:{number}" for number in range(40))


class Priced:
    """What each worker costs, at random, by its number, and which of them were asked for."""

    def __init__(self, seed: int) -> None:
        chosen = random.Random(seed)
        self.bounds = {number: chosen.randrange(5) for number in range(2 * len(DEVICES))}
        self.costs = {number: bound + chosen.choice((0.0, 0.0, 1.0, 7.0)) for number, bound in self.bounds.items()}
        self.asked: list[int] = []

    def cheapest(self, bench: Bench) -> list[int]:
        """Numbers of all that come; all workers of a device have the bound of its first."""
        state = bench.scheduler.state

        def cost(worker: Worker) -> Cost:
            self.asked.append(worker.number)
            return (True, False, False, (self.costs[worker.number],), True, False, 0.0, worker.last_used)

        found = FreeWorkers(state, lambda worker: (float(self.bounds[worker.number]),))
        prices = Prices(0.0, cost, lambda bound, worker: bound)
        return [worker.number for worker in found.cheapest_first(state.models["m"], lambda worker: True, prices)]


@pytest.fixture
def bench() -> Bench:
    return Bench(["m"], workers=1, devices=DEVICES)


@pytest.mark.parametrize("seed", range(5))
def test_they_come_in_the_order_of_their_cost(bench: Bench, seed: int) -> None:
    priced = Priced(seed)
    expected = sorted(range(len(DEVICES)), key=lambda number: (priced.costs[number], number))
    assert priced.cheapest(bench) == expected


@pytest.mark.parametrize("seed", range(5))
def test_of_very_many_devices_those_are_priced_that_may_be_cheapest(
    bench: Bench, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cheapest_worker, "PRICED", 10)
    priced = Priced(seed)
    first = sorted(range(len(DEVICES)), key=lambda number: (priced.bounds[number], number))[:10]
    expected = sorted(first, key=lambda number: (priced.costs[number], number))
    assert priced.cheapest(bench) == expected
    assert sorted(priced.asked) == sorted(first)
