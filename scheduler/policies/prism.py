"""The policy `prism`: idle memory is used for second copies of models, and each request goes where it disturbs least.

A model that is active on several devices needs no migration when demand shifts: the next request is simply sent to
where fewer others are busy, since co-location costs compute, not only memory. So, while memory is idle, models are
activated ahead of their demand, the most wanted first, those without any worker before all others. Copies are given up
as soon as somebody has a better use for their memory: an idle one is evicted by value, which weighs how soon it would
be missed, how long it takes to come back, whether another device has it too, and how many bytes it frees.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from config.registry import Registry
from scheduler import memory
from scheduler.actions import Activate, Decision, Park
from scheduler.policies.on_demand import OnDemand
from scheduler.policies.places import free_on
from scheduler.pressure import kv_use, kvpr, misses
from scheduler.state import MAPPED, Device, Model, Phase, State, Worker

PERIOD = 0.5
"""Seconds between two looks at what idle memory is good for."""
HORIZON = 20.0
"""Seconds for which demand is taken to stay as it is."""
SHORT = 0.8
"""Share of a device's KV cache from which on its memory is short."""
KV_SHARE = 0.25
"""Of a device's memory that copies leave for KV cache."""
CROWD = 0.05
"""What one more request of its own model costs a request, in busy neighbours."""
SPARE = 0.1
"""How valuable a copy is of a model that another device has too."""

COMING = frozenset({Phase.PREPARING, Phase.ACTIVATING})


class Prism(OnDemand):
    elastic = True
    by_admission = True

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._looked_at = float("-inf")

    def route(self, state: State, workers: Sequence[Worker], now: float) -> Worker:
        """Where fewest neighbours are busy; for a worker that is idle so far they count twice, as it disturbs them."""

        def cost(worker: Worker) -> tuple[float, int]:
            others = sum(bool(other.running) for other in state.on(state.devices[worker.device]) if other is not worker)
            begins = not worker.running
            return (others * (1 + begins) + CROWD * len(worker.running), worker.number)

        return min(workers, key=cost)

    def place(self, state: State, worker: Worker, model: Model, now: float) -> tuple[float, ...]:
        device = state.devices[worker.device]
        missed = _added(state, device, model, now) * HORIZON
        waiting = _seconds(state, worker, model) * max(1.0, model.demand.arrivals.per_second(now))
        return (missed + waiting, kvpr(state, device, now, model))

    def value(self, state: State, worker: Worker, now: float) -> float:
        """Requests that would wait for it to come back, by the bytes that it gives."""
        model = state.models[worker.model or ""]
        account = state.account(worker)
        copies = sum(state.workers[number].phase is Phase.ACTIVE for number in model.workers)
        worth = _wanted(model, now) * (1.0 + model.priority) * max(1e-3, _seconds(state, worker, model))
        return worth * (SPARE if copies > 1 else 1.0) / max(1, account.weights + account.kv)

    def park_idle(self, state: State, now: float) -> Iterator[Decision]:
        """An idle model costs nothing until others have use for its memory."""
        for device in state.devices.values():
            if kv_use(state, device) < SHORT:
                continue
            if victim := self.idle_victim(state, now, [device.name]):
                yield Park(victim.number, f"idle {now - victim.last_used:.0f} s, the KV cache of {device.name} is full")

    def improve(self, state: State, now: float) -> Iterator[Decision]:
        if now - self._looked_at < PERIOD or state.wanting:
            return
        self._looked_at = now
        for device in state.devices.values():
            yield from self._use_idle_memory(state, device, now)

    def _use_idle_memory(self, state: State, device: Device, now: float) -> Iterator[Decision]:
        """Activate what is most wanted of the models that the device does not have, if there is room for it."""
        here = {worker.model for worker in state.on(device) if worker.phase in MAPPED}
        if any(worker.phase in COMING for worker in state.on(device)) or self._upkeep.missing(state, device) >= 0:
            return
        candidates = [model for model in state.models.values() if model.name not in here and now >= model.retry_at]
        candidates.sort(key=lambda model: (len(model.workers), -_wanted(model, now), model.index))
        for model in candidates:
            worker = free_on(state, device, model)
            if worker is not None and _leaves_enough(state, device, worker, model):
                yield Activate(worker.number, model.name, "its memory is idle")
                return


def _wanted(model: Model, now: float) -> float:
    """Requests a second that are expected of a model."""
    return model.demand.arrivals.per_second(now) + 1.0 / (60.0 + now - model.last_used)


def _leaves_enough(state: State, device: Device, worker: Worker, model: Model) -> bool:
    """Whether the device would keep `KV_SHARE` of its memory for KV cache."""
    capacity = device.ledger.capacity
    if capacity is None:
        return True
    fixed = sum(account.held + account.weights for account in device.ledger)
    return capacity - fixed - memory.need(state, worker, model) >= KV_SHARE * capacity


def _added(state: State, device: Device, model: Model, now: float) -> float:
    """Requests a second that would be missed more with the model on the device."""
    return misses(state, device, now, plus=[model]) - misses(state, device, now)


def _seconds(state: State, worker: Worker, model: Model) -> float:
    return state.estimates.activation(model.weight_bytes, parked=worker.model == model.name)
