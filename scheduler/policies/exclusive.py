"""The policies `swap` and `serverless`: one model at a time on a device.

`swap`, as QLM, switches a device to whom the earliest deadline waits for. `serverless`, as ServerlessLLM, lets a model
keep its device until it has been idle, and prefers the device that still has its skeleton.
"""

from __future__ import annotations

from collections.abc import Iterator

from config.registry import Registry
from scheduler.actions import Decision
from scheduler.forecast.kv_pressure import mapped_on
from scheduler.policies.on_demand import OnDemand
from scheduler.state.entities import Device, Model
from scheduler.state.state import State


class _Exclusive(OnDemand):
    elastic = True

    def prepare(self, state: State) -> None:
        """Where pinned models leave a model too few devices, it has no place."""
        left = len(state.devices) - sum(model.tensor_parallel for model in state.models.values() if model.pinned)
        for model in state.models.values():
            if not model.pinned and model.tensor_parallel > left:
                model.homes = frozenset()

    def allows(self, state: State, device: Device, model: Model) -> bool:
        return not mapped_on(state, device)


class Swap(_Exclusive):
    def turn(self, state: State, model: Model) -> tuple[float, int]:
        deadline = model.queue.first_deadline()
        return (super().turn(state, model)[0] if deadline is None else deadline, model.index)

    def park_idle(self, state: State, now: float) -> Iterator[Decision]:
        """A device without a model is of no use to anybody."""
        yield from ()


class Serverless(_Exclusive):
    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self.drain_after = registry.scheduler.idle_timeout
