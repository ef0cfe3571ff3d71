"""The policy `prism-paper`: Prism's two levels as they were published (arXiv 2505.04021), and no more.

Placement and migration go by the KV pressure ratio alone. A model may be evicted once it was idle for `idle_timeout`,
and is when memory is short.
"""

from __future__ import annotations

from collections.abc import Iterator

from config.registry import Registry
from scheduler.actions import Decision
from scheduler.forecast.kv_pressure import kv_weight, kvpr
from scheduler.memory import budget
from scheduler.policies.cheapest_worker import Place
from scheduler.policies.groups import activation
from scheduler.policies.moves import Moves
from scheduler.policies.on_demand import OnDemand
from scheduler.policies.places import free_group, free_on, rooms
from scheduler.state.entities import Device, Model, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

PERIOD = 5.0
"""Seconds between two global placements."""
TAU = 0.3
"""By which share of it a move must better the ratio of the device that a model is on."""
COOLDOWN = 30.0
"""Seconds for which a model stays where it has moved: reproductions needed it against churn."""
SHORT = 0.9
"""Share of a device's KV cache from which on its memory is short."""


class PrismPaper(OnDemand):
    elastic = True
    by_admission = True

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._moves = Moves()
        self._placed_at = float("-inf")
        self._to_place = [model.name for model in registry.models]
        """Models that were never active: at the start they are, as far as there is room."""

    def place(self, state: State, worker: Worker, model: Model, now: float) -> tuple[float, ...]:
        return (kvpr(state, state.device_of(worker), now, model),)

    def place_at_least(self, state: State, worker: Worker, now: float) -> Place:
        """A further model only adds to the ratio."""
        return (kvpr(state, state.device_of(worker), now),)

    def narrowed(self, state: State, worker: Worker, model: Model, now: float, bound: Place, *, short: bool) -> Place:
        return self.place(state, worker, model, now)

    def rests(self, state: State, worker: Worker, now: float) -> bool:
        return worker.idle and now - worker.last_used >= self._config.idle_timeout

    def may_leave(self, state: State, worker: Worker) -> bool:
        return not self._moves.concerns(worker)

    def park_idle(self, state: State, now: float) -> Iterator[Decision]:
        yield from self.park_when_short(state, now, SHORT)

    def improve(self, state: State, now: float) -> Iterator[Decision]:
        yield from self._place_first(state, now)
        yield from self._moves.follow(state)
        if now - self._placed_at >= PERIOD and not state.wanting:
            self._placed_at = now
            yield from self._place_all(state, now)

    def _place_first(self, state: State, now: float) -> Iterator[Decision]:
        for model in [state.models[name] for name in self._to_place]:
            if model.workers or model.dismissed:
                self._to_place.remove(model.name)
                continue
            if not self._may_fit(state, model):
                continue
            if free_group(state, list(state.devices.values()), model):
                devices = sorted(
                    state.devices.values(),
                    key=lambda device: (kvpr(state, device, now, model), -budget.room(state, device)),
                )
                yield activation(free_group(state, devices, model), model, "the first placement")

    def _may_fit(self, state: State, model: Model) -> bool:
        """Whether its weights, at least, find room without an eviction, or it has a group of its own already."""
        room = self._cache.of(state, "rooms", lambda: rooms(state))
        parked = self._cache.of(state, "parked groups", lambda: {w.model for w in state.workers if w.grouped})
        needed = model.tensor_parallel
        return model.name in parked or (len(room) >= needed and room[needed - 1] >= model.shard_bytes)

    def _place_all(self, state: State, now: float) -> Iterator[Decision]:
        """Models in descending order of KV weight go to the device of the lowest ratio, beside those that went before.

        It moves only if the ratio there, with it, is lower by more than tau than where it is.
        """
        weights = dict.fromkeys(state.devices, 0.0)
        left = {name: device.ledger.capacity or 1 for name, device in state.devices.items()}

        most = max(left.values())

        def ratio(name: str, weight: float, model: Model) -> float:
            room = left[name] - model.shard_bytes
            return (weights[name] + weight) / room if room > 0 else float("inf")

        serving = [worker for worker in state.workers if worker.phase is Phase.ACTIVE]
        serving.sort(key=lambda worker: -kv_weight(state, state.model_of(worker), now))
        for worker in serving:
            model = state.model_of(worker)
            weight = kv_weight(state, model, now)
            target, at = None, worker.device
            worth = (1 - TAU) * ratio(at, weight, model)
            if weight / most < worth and _can_move(model) and self._moves.settled(model, now, COOLDOWN):
                best = min(state.devices, key=lambda name: (ratio(name, weight, model), name != at))
                if ratio(best, weight, model) < worth:
                    target = self._target(state, state.devices[best], model, now)
            if target is not None:
                at = best
                reason = f"the KV pressure of {best} is lower than that of {worker.device}"
                yield from self._moves.begin(model, worker, target, reason, now)
            weights[at] += weight
            left[at] -= model.shard_bytes

    def _target(self, state: State, device: Device, model: Model, now: float) -> Worker | None:
        """A free worker of the device on which the model can begin at once, if it is not there already."""
        if any(state.workers[number].device == device.name for number in model.workers):
            return None
        return free_on(state, device, model)


def _can_move(model: Model) -> bool:
    """A model on several devices stays where it is, and so does one that is on two already."""
    return model.tensor_parallel == 1 and len(model.workers) == 1
