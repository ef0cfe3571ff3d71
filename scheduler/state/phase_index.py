"""Workers by phase, so that nobody looks at all of them for the few that are in one."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.state.entities import Worker
from scheduler.state.phases import Phase


class PhaseIndex:
    """A worker is listed under its phase and no other. `State.enter` keeps it so."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self.changes = 0
        """How often any worker has changed its phase."""
        self._listed = [worker.phase for worker in workers]
        self._numbers: dict[Phase, set[int]] = {phase: set() for phase in Phase}
        for worker in workers:
            self._numbers[worker.phase].add(worker.number)

    def enter(self, worker: Worker, phase: Phase) -> None:
        """List the worker under another phase."""
        self._numbers[self._listed[worker.number]].discard(worker.number)
        self._numbers[phase].add(worker.number)
        self._listed[worker.number] = phase
        self.changes += 1

    def numbers(self, phase: Phase) -> set[int]:
        return self._numbers[phase]

    def within(self, phases: Iterable[Phase]) -> list[Worker]:
        """Workers in one of the phases, by number."""
        return [self._workers[number] for number in sorted(set().union(*map(self.numbers, phases)))]
