"""Migrations under way: the source serves until the target is ready, so that there is no gap."""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.actions import Activate, Decision, Drain
from scheduler.state.entities import Model, Worker
from scheduler.state.phases import TAKEN, Phase
from scheduler.state.state import State


class Moves:
    def __init__(self) -> None:
        self._under_way: dict[str, tuple[int, int]] = {}
        """By model: source and target."""
        self._moved_at: dict[str, float] = {}

    def concerns(self, worker: Worker) -> bool:
        """Whether a worker is source or target of one: it serves on, whoever wants it."""
        return worker.number in self._under_way.get(worker.model or "", ())

    def settled(self, model: Model, now: float, cooldown: float) -> bool:
        """Whether the model is not on the move, and has not been within `cooldown` seconds."""
        return model.name not in self._under_way and now - self._moved_at.get(model.name, -cooldown) >= cooldown

    def begin(
        self, model: Model, source: Worker, target: Worker, reason: str, now: float, stays: bool = False
    ) -> Iterator[Decision]:
        """The model moves, or, if it `stays` where it is as well, gets a copy."""
        if not stays:
            self._under_way[model.name] = (source.number, target.number)
        self._moved_at[model.name] = now
        yield Activate(target.number, model.name, reason)

    def follow(self, state: State) -> Iterator[Decision]:
        """Send the source away where the target is ready; forget what has come to nothing."""
        for name, (number, target_number) in list(self._under_way.items()):
            source, target = state.workers[number], state.workers[target_number]
            if target.model == name and target.phase in TAKEN and target.phase is not Phase.ACTIVE:
                continue
            del self._under_way[name]
            if target.model == name and target.phase is Phase.ACTIVE and _serves(source, name):
                yield Drain(source.number, f"{name} has moved to worker {target.number}")


def _serves(worker: Worker, model: str) -> bool:
    return worker.model == model and worker.phase is Phase.ACTIVE
