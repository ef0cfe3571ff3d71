"""What was decided and what came of it, for the log and for `prism status`."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from config.units import format_duration
from enginepool.messages import WorkerActivated, WorkerBlanked, WorkerStats
from scheduler import actions
from scheduler.state.entities import Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

log = logging.getLogger("prism.scheduler")

KEPT = 50
"""Entries that `prism status` can show."""


class Journal:
    def __init__(self) -> None:
        self.entries: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self.stats: dict[int, WorkerStats] = {}
        """The newest word of each worker."""
        self.activations: dict[int, dict[str, float]] = {}
        """Seconds by phase of each worker's last activation."""
        self.copies: dict[int, float] = {}
        """Seconds that its copy of the weights took, much of it beside the phases; 0 if there was none."""
        self.teardowns: dict[int, dict[str, float]] = {}
        """Seconds by phase of each worker's last teardown."""
        self._refusals: dict[str, str] = {}
        """Why each model's requests were refused last."""

    def decided(self, action: actions.Decision, state: State) -> None:
        if isinstance(action, actions.Recycle):
            self._forget(action.worker)
        self._enter(_describe(action, state))

    def activated(self, worker: int, seconds: float, message: WorkerActivated) -> None:
        """`seconds` are counted from the order, the message's phases are the worker's own."""
        model, phases = message.model, message.phases
        self.activations[worker], self.copies[worker] = phases, message.copy_seconds
        self._enter(f"{model} is active on worker {worker} after {format_duration(seconds)} ({_parts(phases)})")

    def blanked(self, worker: int, message: WorkerBlanked) -> None:
        self.teardowns[worker] = message.phases
        seconds = format_duration(sum(message.phases.values()))
        self._enter(f"worker {worker} is blank after {seconds} ({_parts(message.phases)})")

    def refused(self, model: str, reason: str) -> None:
        """Its requests cannot be served; told once for each reason, and not for each request."""
        if self._refusals.get(model) != reason:
            self._refusals[model] = reason
            self._enter(f"refusing requests for {model}: {reason}")

    def policy_changed(self, before: str, after: str) -> None:
        self._enter(f"the policy is {after}, and was {before}; every worker is blank")

    def worker_dead(self, worker: int, reason: str) -> None:
        self._forget(worker)
        self._enter(f"worker {worker} is gone: {reason}")

    def device_fault(self, device: str, workers: Sequence[int], reason: str) -> None:
        for worker in workers:
            self._forget(worker)
        self._enter(f"{device} failed with its workers {', '.join(map(str, workers))}: {reason}")

    def _forget(self, worker: int) -> None:
        self.stats.pop(worker, None)
        self.activations.pop(worker, None)
        self.copies.pop(worker, None)
        self.teardowns.pop(worker, None)

    def _enter(self, text: str) -> None:
        log.info("%s", text)
        now = datetime.fromtimestamp(time.time(), UTC)
        self.entries.append({"time": now.isoformat(timespec="milliseconds"), "text": text})


def _parts(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} {format_duration(took)}" for phase, took in phases.items())


def _describe(action: actions.Decision, state: State) -> str:
    match action:
        case actions.Activate():
            return f"activating {action.model} on worker {action.worker}: {action.reason}"
        case actions.Stage():
            return f"loading {action.model} into host memory: {action.reason}"
        case actions.Unstage():
            return f"dropping {action.model} from host memory: {action.reason}"
        case actions.Recycle():
            return f"replacing worker {action.worker}: {action.reason}"
    model = _model_on(state, state.workers[action.worker])
    match action:
        case actions.Drain():
            return f"draining {model} on worker {action.worker}: {action.reason}"
        case actions.Resume():
            return f"{model} serves on, on worker {action.worker}: {action.reason}"
        case actions.Park():
            return f"evicted {model} from worker {action.worker}: {action.reason}"
        case actions.Blank():
            return f"tearing down {model} on worker {action.worker}: {action.reason}"


def _model_on(state: State, worker: Worker) -> str | None:
    if worker.phase is Phase.ISOLATED:
        return state.isolations[worker.number].model
    return worker.pending.skeleton if worker.pending is not None else worker.model
