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
        self._numbers: dict[Phase, set[int]] = {}
        for worker in workers:
            self._numbers.setdefault(worker.phase, set()).add(worker.number)

    def enter(self, worker: Worker, phase: Phase) -> None:
        """The worker changes its phase."""
        self._numbers[worker.phase].discard(worker.number)
        self._numbers.setdefault(phase, set()).add(worker.number)
        worker.phase = phase
        self.changes += 1

    def numbers(self, phase: Phase) -> set[int]:
        return self._numbers.get(phase, set())

    def within(self, phases: Iterable[Phase]) -> list[Worker]:
        """Workers in one of the phases, by number."""
        return [self._workers[number] for number in sorted(set().union(*map(self.numbers, phases)))]
