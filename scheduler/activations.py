"""Activations that are decided and not begun: what they wait for, and whose turn it is."""

from __future__ import annotations

from scheduler import memory
from scheduler.state import Device, Phase, State, Worker


def next_to_begin(state: State, device: Device) -> Worker | None:
    """The worker that may be told to activate now: it has its memory, and the device's link has room for its copy."""
    under_way = sum(worker.phase is Phase.ACTIVATING for worker in state.on(device))
    if device.copies is not None and under_way >= device.copies:
        return None
    ready = (worker for worker in state.on(device) if worker.pending is not None and _has_memory(device, worker))
    return min(ready, key=lambda worker: memory.turn(state, worker), default=None)


def overdue(state: State, device: Device, before: float) -> list[Worker]:
    """Workers that have waited for their neighbours' memory since `before` or longer."""
    return [worker for worker in memory.claims(state, device) if device.accounted and worker.since <= before]


def _has_memory(device: Device, worker: Worker) -> bool:
    return not device.accounted or (worker.pending is not None and worker.pending.granted)
