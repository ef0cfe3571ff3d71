"""How hard-pressed a device is, by memory and by compute, as it is or as it would be with a model more or less."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scheduler.state.entities import Device, Model, Worker
from scheduler.state.state import State

NEWCOMER = 0.5
"""How busy a model is taken to be that begins somewhere."""
ROUNDING = 1e-9
"""Share by which a bound is lowered, since sums in another order come out a little different."""


def kv_weight(state: State, model: Model, now: float) -> float:
    """A model's part in the KV pressure ratio, bytes/s²: token rate x KV bytes per token / TPOT objective.

    Prism, arXiv 2505.04021. A model on several workers has its rate spread evenly over them.
    """
    replicas = max(1, len(model.workers))
    return model.demand.tokens.per_second(now) * model.kv_bytes / model.slo_tpot / replicas


def kvpr(state: State, device: Device, now: float, plus: Model | None = None) -> float:
    """The KV pressure ratio of a device, 1/s²: its models' KV weights by the bytes that their weights leave.

    `plus` is a model that would come. Infinite where nothing is left; without a capacity, the sum of the KV weights.
    """
    parts = kvpr_parts(state, device, now)
    return kvpr_with(state, parts, plus, now) if plus is not None else _ratio(*parts)


def kvpr_parts(state: State, device: Device, now: float) -> tuple[float, int | None]:
    """Of the KV pressure ratio: the KV weights, and the bytes that are left, if they are counted."""
    models = [state.model_of(worker) for worker in mapped_on(state, device)]
    pressure = sum(kv_weight(state, model, now) for model in models)
    if device.ledger.capacity is None:
        return pressure, None
    return pressure, device.ledger.capacity - sum(model.shard_bytes for model in models)


def kvpr_with(state: State, parts: tuple[float, int | None], plus: Model, now: float) -> float:
    """The KV pressure ratio with a model that would come."""
    pressure, left = parts
    return _ratio(pressure + kv_weight(state, plus, now), None if left is None else left - plus.shard_bytes)


def _ratio(pressure: float, left: int | None) -> float:
    if left is None:
        return pressure
    return pressure / left if left > 0 else float("inf")


def mapped_on(state: State, device: Device) -> list[Worker]:
    """Workers of the device that have a model's weights, or are about to."""
    return state.view(device).mapped


@dataclass(frozen=True, slots=True)
class Company:
    """What a newcomer would meet on a device."""

    busy: float
    """Neighbours that are busy, in the mean."""
    pushed: float
    """Requests a second that they would miss more, whoever comes."""


def misses(state: State, device: Device, now: float, *, minus: Worker | None = None) -> float:
    """Requests a second that are expected to miss their TPOT objective for what runs beside them on the device.

    A busy neighbour prolongs every step by the learned slow-down. A model whose TPOT is t alone keeps an objective s
    beside up to (s / t - 1) / slowdown busy neighbours. How many are busy in the lifetime of one answer varies, so that
    misses begin before the mean gets there: their share is taken to grow with the square of the mean, at first.
    """
    loads = _loads(state, device, now, minus=minus)
    together = sum(busy for _, busy in loads)
    return sum(_rate(model, now) * share_missed(state, model, together - busy) for model, busy in loads)


def company_on(state: State, device: Device, now: float) -> Company:
    """What `misses_added` need to know of a device."""
    loads = _loads(state, device, now)
    together, pushed = sum(busy for _, busy in loads), 0.0
    for model, busy in loads:
        before = share_missed(state, model, together - busy)
        pushed += _rate(model, now) * (share_missed(state, model, together - busy + NEWCOMER) - before)
    return Company(together, pushed)


def misses_added(state: State, company: Company, model: Model, now: float) -> float:
    """By how much `misses` grow if the model comes: those of who is there, and its own."""
    return company.pushed + _rate(model, now) * share_missed(state, model, company.busy)


def _loads(state: State, device: Device, now: float, *, minus: Worker | None = None) -> list[tuple[Model, float]]:
    """Models of the device and how busy they are there."""
    return [(state.model_of(worker), worker.busy.at(now)) for worker in mapped_on(state, device) if worker is not minus]


def _rate(model: Model, now: float) -> float:
    """Requests a second that come to one of its workers."""
    return model.demand.arrivals.per_second(now) / max(1, len(model.workers))


def share_missed(state: State, model: Model, neighbours: float) -> float:
    """The share of a model's requests that miss their TPOT objective beside so many busy neighbours.

    It comes near to all of them and never gets there, so that of two crowded devices the less crowded one is better.
    """
    crowding = neighbours / max(0.1, tolerance(state, model))
    return 1.0 - math.exp(-crowding * crowding)


def tolerance(state: State, model: Model) -> float:
    """Busy neighbours beside which the model still keeps its TPOT objective; one, while its speed is not known."""
    if model.demand.tpot <= 0.0:
        return 1.0
    slack = model.slo_tpot / model.demand.tpot - 1.0
    return slack / max(0.01, state.estimates.slowdown)


def kv_use(state: State, device: Device) -> float:
    """Share of what the device has for KV cache that requests need or wait for; 0 where memory is not accounted.

    What an engine has mapped says less: it keeps the prefixes of old requests as long as nobody needs their memory.
    """
    if device.ledger.capacity is None:
        return 0.0
    room = device.ledger.capacity - device.ledger.fixed
    needed = sum(kv_needed(state, worker) for worker in mapped_on(state, device))
    return needed / room if room > 0 else 1.0


def kv_needed(state: State, worker: Worker) -> float:
    """Bytes of KV cache for what a worker runs, and for its part of what waits for its model."""
    model = state.model_of(worker)
    tokens = len(model.queue) * (model.demand.prompt_tokens + model.demand.output_tokens)
    return worker.replica.kv_promised + tokens * model.kv_bytes / max(1, len(model.workers))
