"""Where a model can go without anybody having to leave for it."""

from __future__ import annotations

from collections.abc import Sequence

from scheduler.memory import budget
from scheduler.policies.groups import parked_groups, spread
from scheduler.policies.staging import is_staged
from scheduler.state.entities import Device, Model, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State


def free_group(state: State, devices: Sequence[Device], model: Model) -> list[Worker]:
    """Free workers of as many of these devices as `model` needs, the first ones first, without an eviction.

    Its parked group comes before all; empty if there are not enough.
    """
    names = {device.name for device in devices}
    for parked in parked_groups(state, model):
        here = all(worker.device in names and budget.shortage(state, worker, model) <= 0 for worker in parked)
        if here and parked[0].reserved_for is None and is_staged(state, model):
            return list(parked)
    free = (free_on(state, device, model) for device in devices)
    group = spread((worker for worker in free if worker is not None), model.tensor_parallel)
    return group if len(group) == model.tensor_parallel else []


def rooms(state: State) -> list[float]:
    """Bytes that weights can have on each device with a free worker, the most first."""
    with_free = (device for device in state.devices.values() if state.view(device).free)
    return sorted(
        (budget.room(state, device) - device.kv_minimum if device.accounted else float("inf") for device in with_free),
        reverse=True,
    )


def free_on(state: State, device: Device, model: Model) -> Worker | None:
    """The free worker of a device from which `model` is there soonest, without an eviction."""
    if not is_staged(state, model):
        return None
    free = [
        worker
        for worker in state.view(device).free
        if (worker.phase is Phase.BLANK or worker.model == model.name) and worker.reserved_for is None
    ]
    if not free or not budget.ever_fits(state, device, model):
        return None
    room = budget.room(state, device)
    possible = (worker for worker in free if not device.accounted or budget.need(state, worker, model) <= room)
    return min(possible, key=lambda worker: worker.phase is Phase.BLANK, default=None)
