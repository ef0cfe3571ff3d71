"""Why a model cannot be served, whatever is evicted for it."""

from __future__ import annotations

from config.units import format_size
from scheduler.memory import budget
from scheduler.state.entities import Device, Model, Worker
from scheduler.state.state import State


def obstacle(state: State, model: Model) -> str:
    """What stands against `model`; empty when nothing does."""
    return _of_host(state, model) or _of_workers(state, model) or _of_devices(state, model)


def obstacle_on(state: State, device: Device, model: Model, place: Worker | None = None) -> str:
    """What stands against `model` on this device, or in one `place` on it."""
    if budget.ever_fits(state, device, model, place):
        return ""
    if not model.may_be_on(device):
        return f"{model.name} has no place on {device.name}"
    needed, capacity = format_size(budget.least(state, device, model, place)), format_size(device.ledger.capacity or 0)
    return f"{model.name} does not fit into the memory of {device.name}: that takes {needed} of {capacity}"


def obstacle_from(state: State, model: Model, place: Worker) -> str:
    """What stands against `model` in one `place`, and beside it on as many other devices as it needs."""
    device = state.device_of(place)
    problem = obstacle_on(state, device, model, place)
    if problem or model.tensor_parallel == 1:
        return problem
    others = [other for other in state.devices.values() if other is not device]
    return _of_several(state, model, others, model.tensor_parallel - 1, beside_itself=True)


def _of_host(state: State, model: Model) -> str:
    if not state.host.required:
        return ""
    kept = state.host.kept
    if model.kept and (model.staged or model.name == state.host.staging):
        kept -= model.weight_bytes
    if model.weight_bytes <= state.host.capacity - kept:
        return ""
    size, room = format_size(model.weight_bytes), format_size(state.host.capacity)
    beside = "" if model.weight_bytes > state.host.capacity else f" beside {format_size(kept)} that are kept there"
    return f"{model.name} does not fit into host memory{beside}: it has {size}, weight_store.host_memory is {room}"


def _of_workers(state: State, model: Model) -> str:
    if not model.pinned and state.pinned_workers >= len(state.workers):
        return f"every worker is kept by a pinned model, none is left for {model.name}"
    return ""


def _of_devices(state: State, model: Model) -> str:
    if model.tensor_parallel > 1:
        return _of_several(state, model, list(state.devices.values()), model.tensor_parallel)
    if any(budget.ever_fits(state, device, model) for device in state.devices.values()):
        return ""
    return next((obstacle_on(state, device, model) for device in state.devices.values()), "")


def _of_several(state: State, model: Model, devices: list[Device], wanted: int, *, beside_itself: bool = False) -> str:
    """What keeps `model` from as many of these devices as are `wanted`; `beside_itself`, while it serves elsewhere."""
    own = None if beside_itself else model.name
    found = [obstacle_on(state, device, model) or _of_pinned(state, device, model, own) for device in devices]
    if found.count("") >= wanted:
        return ""
    return next(filter(None, found), f"{model.name} needs {model.tensor_parallel} devices, there are not as many")


def _of_pinned(state: State, device: Device, model: Model, own: str | None) -> str:
    if all(state.keeps_pinned(worker) and worker.model != own for worker in state.on(device)):
        return f"every worker of {device.name} is kept by a pinned model, none is left for {model.name}"
    return ""
