"""Activations that are decided and not begun: what they wait for, and whose turn it is."""

from __future__ import annotations

from scheduler.memory import budget
from scheduler.state.entities import Device, Worker
from scheduler.state.state import State


def next_to_begin(state: State, device: Device) -> Worker | None:
    """The worker that may be told to activate now: nothing of another model is in it, it has its memory, and the
    device's link has room for its copy.

    A group copies over the links of all of its devices at once. While it waits for another one, whoever comes after it
    waits too, else it might do so for ever; as turns are the same on all devices, none wait for each other.
    """
    preparing = state.view(device).preparing
    if not preparing or not _has_link(state, device):
        return None
    ready = (worker for worker in preparing if not worker.tearing and _has_memory(state, worker))
    first = min(ready, key=lambda worker: budget.turn(state, worker), default=None)
    if first is None:
        return None
    group = first.replica.workers
    return first.replica.lead if all(_has_link(state, state.device_of(member)) for member in group) else None


def overdue(state: State, device: Device, before: float) -> list[Worker]:
    """Workers that have waited for their neighbours' memory since `before` or longer."""
    return [worker for worker in budget.claims(state, device) if worker.since <= before]


def _has_link(state: State, device: Device) -> bool:
    if device.copies is None:
        return True
    return sum(worker.replica.copying for worker in state.on(device)) < device.copies


def _has_memory(state: State, worker: Worker) -> bool:
    """Whether all of its group have."""
    return all(
        not state.device_of(member).accounted or (member.pending is not None and member.pending.granted)
        for member in worker.replica.workers
    )
