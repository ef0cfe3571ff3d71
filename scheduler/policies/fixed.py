"""The policies `static` and `space`: every model has its place for ever.

`static` gives each model of a device an equal part of its KV cache; `space`, as MuxServe with an elastic cache, gives
the cache to whoever has use for it. A model for which there is no room is not served.
"""

from __future__ import annotations

from random import Random

from config.registry import Registry
from scheduler.memory.budget import held_when_active
from scheduler.policies.on_demand import OnDemand
from scheduler.state.entities import Device, Model
from scheduler.state.state import State


class Static(OnDemand):
    """`placement_seed` 0 puts the largest model first, each onto the device with most room; others draw a placement."""

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._seed = registry.scheduler.placement_seed
        self._luck = Random(self._seed)
        self._workers = registry.pool.workers_per_device

    def prepare(self, state: State) -> None:
        room = {name: _Room(device, self._workers) for name, device in state.devices.items()}
        for model in self._in_order(state):
            homes = self._homes(model, [place for place in room.values() if place.fits(model)])
            model.pinned = bool(homes)
            model.homes = frozenset(home.device.name for home in homes)
            for home in homes:
                home.take(model)
        if state.host.required:
            state.to_preload = {model.name: None for model in state.models.values() if model.kept}

    def _homes(self, model: Model, possible: list[_Room]) -> list[_Room]:
        """As many as the model needs, or none."""
        wanted = model.tensor_parallel
        if len(possible) < wanted:
            return []
        if not self._seed:
            return sorted(possible, key=_Room.roominess, reverse=True)[:wanted]
        return [self._luck.choice(possible)] if wanted == 1 else self._luck.sample(possible, wanted)

    def _in_order(self, state: State) -> list[Model]:
        """Pinned ones first: theirs is the place that others may have to do without."""
        models = list(state.models.values())
        if self._seed:
            self._luck.shuffle(models)
            return sorted(models, key=lambda model: not model.pinned)
        return sorted(models, key=lambda model: (not model.pinned, -model.weight_bytes, model.index))


class Space(Static):
    elastic = True


class _Room:
    """What of a device is not given away yet."""

    def __init__(self, device: Device, workers: int) -> None:
        self.device = device
        self._workers = workers
        self._bytes = device.ledger.capacity

    def fits(self, model: Model) -> bool:
        return self._workers > 0 and (self._bytes is None or self._size(model) <= self._bytes)

    def take(self, model: Model) -> None:
        self._workers -= 1
        if self._bytes is not None:
            self._bytes -= self._size(model)

    def roominess(self) -> tuple[int, int]:
        return (self._bytes or 0, self._workers)

    def _size(self, model: Model) -> int:
        return model.shard_bytes + held_when_active(self.device, model) + self.device.kv_minimum
