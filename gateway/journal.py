"""What was decided and what came of it: for the log, for `prism status` and for subscribers."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from config.units import format_duration
from enginepool.messages import WorkerActivated, WorkerBlanked, WorkerStats
from gateway.report import DecisionKind, EntryKind, JournalEntry
from gateway.subscription import Subscription
from scheduler import actions
from scheduler.state.entities import Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

log = logging.getLogger("prism.scheduler")

KEPT = 50
"""Entries that `prism status` can show."""
UNREAD = 1000
"""Entries that a subscriber may leave unread before it loses the oldest."""


class Journal:
    """`devices` has the device of each worker, by the worker's number.

    Entries are for operators: reasons may name files of this machine, which clients are not told.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.entries: deque[JournalEntry] = deque(maxlen=KEPT)
        self.stats: dict[int, WorkerStats] = {}
        """The latest report of each worker."""
        self.activations: dict[int, dict[str, float]] = {}
        """Seconds by phase of each worker's last activation."""
        self.copies: dict[int, float] = {}
        """Seconds that its copy of the weights took, in part beside the phases; 0 if none was made."""
        self.teardowns: dict[int, dict[str, float]] = {}
        """Seconds by phase of each worker's last teardown."""
        self._devices = devices
        self._refusals: dict[str, str] = {}
        """Why each model's requests were refused last."""
        self._subscriptions: set[Subscription] = set()

    @asynccontextmanager
    async def subscribe(self, capacity: int = UNREAD) -> AsyncIterator[Subscription]:
        """Read entries as they are made, beginning with the next one; those before it are in `entries`.

        A subscriber that leaves more than `capacity` entries unread loses the oldest, and reads how many it missed.
        """
        subscription = Subscription(capacity)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    def decided(self, action: actions.Decision, state: State) -> None:
        if isinstance(action, actions.Recycle):
            self._forget(action.worker)
        worker = None if isinstance(action, actions.Stage | actions.Unstage) else action.worker
        model = _model_of(action, state)
        kind, what = _describe(action, model)
        self._enter(kind, f"{what}: {action.reason}", model=model, worker=worker, reason=action.reason)

    def activated(self, worker: int, seconds: float, message: WorkerActivated) -> None:
        """`seconds` are counted from the order, the message's phases are the worker's own."""
        model, phases = message.model, message.phases
        self.activations[worker], self.copies[worker] = phases, message.copy_seconds
        text = f"{model} is active on worker {worker} after {format_duration(seconds)} ({_parts(phases)})"
        self._enter("activated", text, model=model, worker=worker)

    def blanked(self, worker: int, message: WorkerBlanked) -> None:
        self.teardowns[worker] = message.phases
        seconds = format_duration(sum(message.phases.values()))
        self._enter("blanked", f"worker {worker} is blank after {seconds} ({_parts(message.phases)})", worker=worker)

    def refused(self, model: str, reason: str) -> None:
        """The model cannot be served. Entered once for each new reason, not for each request."""
        if self._refusals.get(model) != reason:
            self._refusals[model] = reason
            self._enter("refused", f"refusing requests for {model}: {reason}", model=model, reason=reason)

    def policy_changed(self, before: str, after: str) -> None:
        self._enter("policy_changed", f"the policy changed from {before} to {after}; every worker is blank")

    def worker_dead(self, worker: int, reason: str) -> None:
        self._forget(worker)
        self._enter("worker_dead", f"worker {worker} is gone: {reason}", worker=worker, reason=reason)

    def device_fault(self, device: str, workers: Sequence[int], reason: str) -> None:
        for worker in workers:
            self._forget(worker)
        text = f"{device} failed with its workers {', '.join(map(str, workers))}: {reason}"
        self._enter("device_fault", text, device=device, reason=reason)

    def _forget(self, worker: int) -> None:
        self.stats.pop(worker, None)
        self.activations.pop(worker, None)
        self.copies.pop(worker, None)
        self.teardowns.pop(worker, None)

    def _enter(
        self,
        kind: EntryKind,
        text: str,
        *,
        model: str | None = None,
        worker: int | None = None,
        device: str | None = None,
        reason: str = "",
    ) -> None:
        log.info("%s", text)
        now = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds")
        if worker is not None:
            device = self._devices[worker]
        entry = JournalEntry(now, text, kind, model, worker, device, reason)
        self.entries.append(entry)
        for subscription in self._subscriptions:
            subscription.put(entry)


def _parts(phases: Mapping[str, float]) -> str:
    return ", ".join(f"{phase} {format_duration(took)}" for phase, took in phases.items())


def _describe(action: actions.Decision, model: str | None) -> tuple[DecisionKind, str]:
    match action:
        case actions.Activate():
            return "activate", f"activating {model} on worker {action.worker}"
        case actions.Drain():
            return "drain", f"draining {model} on worker {action.worker}"
        case actions.Resume():
            return "resume", f"{model} keeps serving on worker {action.worker}"
        case actions.Park():
            return "park", f"evicted {model} from worker {action.worker}"
        case actions.Blank():
            return "blank", f"tearing down {model} on worker {action.worker}"
        case actions.Recycle():
            return "recycle", f"replacing worker {action.worker}"
        case actions.Stage():
            return "stage", f"loading {model} into host memory"
        case actions.Unstage():
            return "unstage", f"dropping {model} from host memory"


def _model_of(action: actions.Decision, state: State) -> str | None:
    if isinstance(action, actions.Activate | actions.Stage | actions.Unstage):
        return action.model
    return None if isinstance(action, actions.Recycle) else _model_on(state, state.workers[action.worker])


def _model_on(state: State, worker: Worker) -> str | None:
    if worker.phase is Phase.ISOLATED:
        return state.isolations[worker.number].model
    return worker.pending.skeleton if worker.pending is not None else worker.model
