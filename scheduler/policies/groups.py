"""Workers for models on several devices: one on each, which act as one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from scheduler.actions import Activate
from scheduler.state.entities import Model, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State


def activation(group: Sequence[Worker], model: Model, reason: str) -> Activate:
    """Of `model` on these workers, the first of which leads."""
    followers = tuple(worker.number for worker in group[1:])
    return Activate(group[0].number, model.name, reason, followers=followers)


def spread(workers: Iterable[Worker], wanted: int) -> list[Worker]:
    """The first of each device, as many as are `wanted` or there are; nobody further is asked for."""
    chosen: dict[str, Worker] = {}
    for worker in workers:
        chosen.setdefault(worker.device, worker)
        if len(chosen) == wanted:
            break
    return list(chosen.values())


def parked_groups(state: State, model: Model) -> list[tuple[Worker, ...]]:
    """Groups that keep the model's skeleton. They serve nobody else before they are blank."""
    if model.tensor_parallel == 1:
        return []
    return [w.replica.workers for w in _parked(state) if w.model == model.name]


def group_in_the_way(state: State, devices: Collection[str]) -> Worker | None:
    """The leader of the parked group, on any of the devices, that was used longest ago."""
    parked = (
        worker
        for worker in _parked(state)
        if worker.reserved_for is None and any(member.device in devices for member in worker.replica.workers)
    )
    return min(parked, key=lambda worker: worker.last_used, default=None)


def _parked(state: State) -> list[Worker]:
    """Leaders of parked groups."""
    return [worker for worker in state.in_phase(Phase.PARKED) if worker.grouped and worker.leads]
