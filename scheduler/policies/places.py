"""Where a model can go without anybody having to leave for it."""

from __future__ import annotations

from scheduler import memory
from scheduler.state import Device, Model, Phase, State, Worker


def free_on(state: State, device: Device, model: Model) -> Worker | None:
    """The free worker of a device from which `model` is there soonest, without an eviction."""
    if not model.staged and state.host.required:
        return None
    free = [
        worker
        for worker in state.on(device)
        if (worker.phase is Phase.BLANK or (worker.phase is Phase.PARKED and worker.model == model.name))
        and worker.reserved_for is None
        and memory.ever_fits(state, device, model)
        and memory.shortage(state, worker, model) <= 0
    ]
    return min(free, key=lambda worker: worker.phase is Phase.BLANK, default=None)
