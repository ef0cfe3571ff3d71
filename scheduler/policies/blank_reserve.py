"""What is done for workers in the background, whatever the policy: blank ones in reserve, worn ones replaced."""

from __future__ import annotations

from collections.abc import Iterator

from config.devices import blank_reserve
from config.registry import PoolConfig
from config.units import format_size
from scheduler.actions import Blank, Decision, Recycle
from scheduler.memory import budget
from scheduler.state.entities import Device
from scheduler.state.phases import Phase
from scheduler.state.state import State


class Upkeep:
    def __init__(self, pool: PoolConfig) -> None:
        self._reserve = {device: blank_reserve(pool, device) for device in pool.devices}
        self._recycle_above = pool.recycle_above

    def plan(self, state: State) -> Iterator[Decision]:
        """To be called once those who wait for a worker have been served."""
        for device in state.devices.values():
            yield from self._blank_parked(state, device)
            yield from self._recycle(state, device)

    def missing(self, state: State, device: Device) -> int:
        """Blank workers that the device's reserve is short of, with those counted that soon will be."""
        return self._reserve[device.name] - state.view(device).nearly_blank

    def _blank_parked(self, state: State, device: Device) -> Iterator[Decision]:
        """The longest unused first. Who waits for a model gets its skeleton rather than a blank worker."""
        missing = self.missing(state, device)
        if missing <= 0:
            return
        unwanted = (
            worker
            for worker in state.on(device)
            if worker.phase is Phase.PARKED
            and worker.replica.lead.reserved_for is None
            and worker.model not in state.wanting
        )
        parked = sorted(unwanted, key=lambda worker: worker.last_used)
        for worker in parked[:missing]:
            yield Blank(worker.replica.lead.number, "the reserve of blank workers is short")

    def _recycle(self, state: State, device: Device) -> Iterator[Decision]:
        """Rebuilds leave memory behind. One at a time, and only while nobody is in need of a worker for it."""
        if state.view(device).grown <= self._recycle_above:
            return
        here = state.on(device)
        blank = [worker for worker in here if worker.phase is Phase.BLANK and worker.reserved_for is None]
        if any(worker.phase is Phase.STARTING for worker in here) or (state.wanting and len(blank) < 2):
            return
        worn = max(blank, key=lambda worker: budget.grown(state, worker), default=None)
        if worn is not None and budget.grown(state, worn) > self._recycle_above:
            yield Recycle(worn.number, f"it holds {format_size(budget.grown(state, worn))} more than when it was new")
