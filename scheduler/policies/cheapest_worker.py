"""Yields free workers in cost order, computing exact costs only for those that could still win.

What a worker costs a model can take long to find out. A bound that is the same for all models is known of each; so they
are looked at in its order, and as soon as the bound exceeds the least cost found, that one is the cheapest. In a very
large pool the first `PRICED` devices are all that is looked at: one of those that seem best is good enough.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from scheduler.memory import budget
from scheduler.state.entities import Device, Model, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

PRICED = 128
"""Devices that are looked at for one model, beside those with its skeleton."""

Place = tuple[float, ...]
Cost = tuple[float | bool | Place, ...]
"""Free for all, avoided, short of memory, place, without the skeleton, parked, room, last use: the least is best."""


class Prices(NamedTuple):
    """What workers cost one model."""

    comes_for: float
    """By how much the first part of a place without its skeleton exceeds the least that it costs any model."""
    cost: Callable[[Worker], Cost]
    narrowed: Callable[[Cost, Worker], Cost]
    """A better bound than the one that is given, if there is one that takes little time."""


class _Entry(NamedTuple):
    """A free worker. Entries sort by what it costs at least."""

    place: Place
    rest: Cost
    number: int
    room: float
    """Bytes that its device has for weights, and for what it holds with a model above what it `held` blank."""
    held: int
    workspace: int
    worker: Worker

    def bound(self, comes_for: float, *, short: bool) -> Cost:
        """Of what it costs a model whose skeleton it does not keep."""
        return (True, False, short, tuple(least + comes_for for least in self.place), True, *self.rest)

    def keeps(self, model: Model) -> bool:
        """Whether it has the skeleton of `model`."""
        return self.worker.replica.model == model.name

    def is_short(self, model: Model) -> bool:
        holds = self.workspace if model.held is None else model.held
        return model.shard_bytes + max(0, holds - self.held) > self.room


class FreeWorkers:
    """As they are now: to be made anew when a worker changes its phase, or time passes.

    `least` is what a place costs any model at least.
    """

    def __init__(self, state: State, least: Callable[[Worker], Place]) -> None:
        self._known: dict[str, list[Worker]] = {}
        """By model: those that have its skeleton, or are reserved for it."""
        self._entries: list[_Entry] = []
        """Those that are reserved for nobody."""
        for device in state.devices.values():
            if free := state.view(device).free:
                place, room = least(free[0]), budget.room(state, device)
                for worker in free:
                    self._note(state, device, worker, place, room)
        self._entries.sort()

    def _note(self, state: State, device: Device, worker: Worker, place: Place, room: int) -> None:
        replica = worker.replica
        for name in {worker.reserved_for, replica.model} - {None}:
            self._known.setdefault(name or "", []).append(worker)
        if worker.reserved_for is None:
            rest = (replica.phase is not Phase.BLANK, -room, replica.last_used)
            left = room - device.kv_minimum if device.accounted else float("inf")
            held = state.account(worker).held
            self._entries.append(_Entry(place, rest, worker.number, left, held, device.workspace, worker))

    def of(self, model: Model) -> Iterator[Worker]:
        """Those that are reserved for nobody else, in any order."""
        return chain(self._known_to(model), (entry.worker for entry in self._entries if not entry.keeps(model)))

    def cheapest_first(self, model: Model, possible: Callable[[Worker], bool], prices: Prices) -> Iterator[Worker]:
        """The possible ones of these; of the same cost the lower number first."""
        known: Iterable[tuple[Cost, Worker]] = (((), worker) for worker in self._known_to(model))
        bounded = (
            (entry.bound(prices.comes_for, short=short), entry.worker)
            for short in (False, True)
            for entry in self._entries
            if entry.is_short(model) is short and not entry.keeps(model)
        )
        own = (found for found in known if possible(found[1]))
        others = (found for found in bounded if possible(found[1]))
        return _by_cost(chain(own, _on_first_devices(others, PRICED)), prices)

    def _known_to(self, model: Model) -> list[Worker]:
        return [worker for worker in self._known.get(model.name, ()) if worker.reserved_for in (None, model.name)]


def _on_first_devices(bounded: Iterable[tuple[Cost, Worker]], most: int) -> Iterator[tuple[Cost, Worker]]:
    devices: set[str] = set()
    for bound, worker in bounded:
        devices.add(worker.device)
        if len(devices) > most:
            return
        yield bound, worker


def _by_cost(bounded: Iterable[tuple[Cost, Worker]], prices: Prices) -> Iterator[Worker]:
    """In the order of their cost. They come with bounds of it, in ascending order."""
    seen: list[tuple[Cost, int, bool, Worker]] = []
    for bound, worker in bounded:
        # Bounds only rise from here: whatever is cheaper than this one is cheaper than all that follow.
        while seen and seen[0][0] < bound:
            yield from _next(seen, prices)
        heapq.heappush(seen, (prices.narrowed(bound, worker), worker.number, False, worker))
    while seen:
        yield from _next(seen, prices)


def _next(seen: list[tuple[Cost, int, bool, Worker]], prices: Prices) -> Iterator[Worker]:
    """The first one, if its cost is known; else that is found out."""
    _, number, is_cost, worker = seen[0]
    if is_cost:
        heapq.heappop(seen)
        yield worker
    else:
        heapq.heapreplace(seen, (prices.cost(worker), number, True, worker))
