"""What fits on a device, and what would have to go for it. Questions only: the answers change nothing."""

from __future__ import annotations

from scheduler.state.entities import Device, Model, Worker
from scheduler.state.phases import SERVING, Phase
from scheduler.state.state import State


def held_when_active(device: Device, model: Model) -> int:
    """Bytes that a worker of the device holds with `model`, besides weights and KV cache: measured, or the default."""
    return device.workspace if model.held is None else model.held


def need(state: State, worker: Worker, model: Model) -> int:
    """Bytes that its device must have free for `model` to begin on a worker, which may keep another's skeleton."""
    device, held = state.device_of(worker), state.account(worker).held
    return model.shard_bytes + device.kv_minimum + max(0, held_when_active(device, model) - held)


def claims(state: State, device: Device) -> list[Worker]:
    """Workers whose activation waits for memory, in their order; none where memory is not accounted."""
    if not device.accounted:
        return []
    waiting = (w for w in state.view(device).preparing if w.pending is not None and not w.pending.granted)
    return sorted(waiting, key=lambda worker: turn(state, worker))


def turn(state: State, worker: Worker) -> tuple[float, float, int]:
    """Activations that wait go by the earliest deadline that waits for them: a group's turn is the same everywhere."""
    deadline = state.model_of(worker).queue.first_deadline()
    return (float("inf") if deadline is None else deadline, worker.since, worker.replica.lead.number)


def claimed(state: State, device: Device) -> int:
    """Bytes that activations wait for."""
    return sum(need(state, worker, state.model_of(worker)) for worker in claims(state, device))


def room(state: State, device: Device) -> int:
    """Bytes that a further activation can have without an eviction; 0 where memory is not accounted."""
    if not device.accounted:
        return 0
    view = state.view(device)
    return view.room - claimed(state, device) if view.preparing else view.room


def shortage(state: State, worker: Worker, model: Model) -> int:
    """Bytes that evictions must bring before `model` can begin on `worker`; 0 or less when it can at once."""
    device = state.device_of(worker)
    return need(state, worker, model) - room(state, device) if device.accounted else 0


def coming(state: State, device: Device) -> int:
    """Bytes of `room` that evictions under way will bring."""
    return sum(_brings(state, device, worker) for worker in state.on(device))


def _brings(state: State, device: Device, worker: Worker) -> int:
    account = state.account(worker)
    match worker.phase:
        case Phase.PARKING:
            return account.weights + account.kv
        case Phase.DRAINING:
            return account.weights + min(account.kv, device.kv_minimum)
        case Phase.BLANKING | Phase.STARTING:
            return gain_of_blanking(state, worker)
        case _:
            return 0


def gain_of_blanking(state: State, worker: Worker) -> int:
    """Bytes that a parked worker's skeleton takes, or the process before one that starts."""
    return max(0, state.account(worker).held - (worker.held_blank or 0))


def grown(state: State, worker: Worker) -> int:
    """Bytes that a blank worker holds above what its process held at first."""
    return state.account(worker).held - (worker.held_first or 0)


def ever_fits(state: State, device: Device, model: Model, place: Worker | None = None) -> bool:
    """Whether `model` can begin on the device, or in one `place` on it, once all is evicted that may be."""
    if not model.may_be_on(device):
        return False
    return not device.accounted or least(state, device, model, place) <= (device.ledger.capacity or 0)


def least(state: State, device: Device, model: Model, place: Worker | None = None) -> int:
    """Bytes that the device must have for `model`, for blank workers, and for the pinned models that are there now.

    Where it serves already counts as its own; with a `place`, it shall serve there as well.
    """
    own = model.shard_bytes + held_when_active(device, model) + device.kv_minimum
    if place is not None:
        return own + state.kept_beside(device, [worker for worker in state.on(device) if worker is not place])
    view = state.view(device)
    if any(worker.model == model.name for worker in view.serving):
        rest = [w for w in state.on(device) if not (w.model == model.name and w.phase in SERVING)]
        return own + state.kept_beside(device, rest)
    return own + view.kept
