"""Weights in host memory: whose are loaded, and whose go back to disk for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from scheduler.actions import Decision, Stage, Unstage
from scheduler.state.entities import Model
from scheduler.state.phases import MAPPED
from scheduler.state.state import State

PRIORITY_HEAD_START = 1.0
"""Seconds that one step of priority is worth among those who wait for a worker."""


Turn = Callable[[Model], tuple[float, int]]
"""Of those who wait for a worker, who has the least is seen to first."""


def first_come(model: Model) -> tuple[float, int]:
    """First come, first served, with a head start by priority; so nobody starves, whatever the priorities are."""
    return (model.wanted_since - PRIORITY_HEAD_START * model.priority, model.index)


def stage(state: State, model: Model, reason: str, turn: Turn) -> Iterator[Decision]:
    """Load a model, after dropping as many of the least wanted ones as it takes."""
    for victim in _unstageable(state, model, turn):
        if _host_room(state, model) >= 0:
            break
        yield Unstage(victim.name, f"host memory is needed for {model.name}")
    yield Stage(model.name, reason)


def is_staged(state: State, model: Model) -> bool:
    return model.staged or not state.host.required


def can_come(state: State, model: Model, turn: Turn) -> bool:
    """Whether the model's weights are in host memory, on the way there, or could be without evicting anyone."""
    return is_staged(state, model) or state.host.staging is not None or can_make_room(state, model, turn)


def can_make_room(state: State, model: Model, turn: Turn) -> bool:
    """Whether the weights fit after dropping those that no worker maps."""
    return _host_room(state, model) + sum(other.weight_bytes for other in _unstageable(state, model, turn)) >= 0


def has_room(state: State, model: Model) -> bool:
    """Whether the weights fit into host memory as it is."""
    return _host_room(state, model) >= 0


def _host_room(state: State, model: Model) -> int:
    """Bytes that would be left with `model` in; negative when it does not fit."""
    return state.host.capacity - state.host.used - model.weight_bytes


def _unstageable(state: State, model: Model, turn: Turn) -> list[Model]:
    """Models whose weights may go back to disk for `model`, the least wanted first.

    Of those that want a worker too, only the ones whose turn comes later; who has been given a worker comes first.
    """
    reserved = {worker.reserved_for for worker in state.workers}

    def rank(wanting: Model) -> tuple[bool, tuple[float, int]]:
        return (wanting.name not in reserved, turn(wanting))

    mapped = {worker.replica.model for worker in state.workers if worker.replica.phase in MAPPED}
    mapped |= state.isolated_models()
    candidates = [
        other
        for other in state.models.values()
        if other.staged
        and other is not model
        and other.name not in mapped
        and not other.kept
        and (other.name not in state.wanting or (model.name in state.wanting and rank(model) < rank(other)))
    ]
    return sorted(candidates, key=lambda other: (other.name in state.wanting, other.last_used))
