"""Carries out what the scheduler decides, and decides nothing itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import assert_never

from config.errors import RequestError
from enginepool import messages
from enginepool.pool.store import WeightStore
from enginepool.pool.supervisor import Supervisor
from gateway.catalog import Catalog
from gateway.commands import Commands
from gateway.current_scheduler import CurrentScheduler
from gateway.in_flight import InFlight
from gateway.journal import Journal
from gateway.loads import Loads
from gateway.metrics import Metrics
from gateway.offers import Offers
from gateway.server_paths import ServerPaths
from scheduler import actions

_REFUSALS: dict[actions.RefusalKind, tuple[int, str, str]] = {
    "queue_full": (429, "rate_limit_error", "queue_full"),
    "late": (429, "rate_limit_error", "deadline_unreachable"),
    "unavailable": (503, "server_error", "model_unavailable"),
    "fault": (500, "server_error", "device_fault"),
    "crash": (500, "server_error", "worker_crash"),
}
"""HTTP status and OpenAI's error type and code, by kind of refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    live: InFlight
    scheduler: CurrentScheduler
    pool: Supervisor
    store: WeightStore
    catalog: Catalog
    loads: Loads
    offers: Offers
    commands: Commands
    ordered_at: dict[int, float]
    """Monotonic seconds at which each worker's current activation was ordered; `Signals` takes the time from it."""
    metrics: Metrics
    journal: Journal
    paths: ServerPaths

    def carry_out(self, action: actions.AnyAction) -> None:
        match action:
            case actions.Dispatch():
                self._dispatch(action)
            case actions.SetKvLimit():
                self.pool.send(action.worker, messages.SetKvLimit(action.revision, action.nbytes))
            case actions.Refuse():
                self._refuse(action)
            case actions.Abort():
                self._abort(action)
            case actions.Answer():
                self.commands.answer(action)
            case _:
                self.journal.decided(action, self.scheduler.state)
                self._obey(action)

    def _obey(self, decision: actions.Decision) -> None:
        """Carry out a decision about a worker or about host memory."""
        match decision:
            case actions.Activate():
                self._activate(decision)
            case actions.Park():
                self.pool.send(decision.worker, messages.Park())
            case actions.Blank():
                self.pool.send(decision.worker, messages.Blank())
            case actions.Recycle():
                self.live.requeue((decision.worker,))
                self.pool.recycle(decision.worker, isolated=decision.isolated)
            case actions.Stage():
                self.loads.begin(decision.model, self.scheduler.state.models[decision.model].weight_bytes)
            case actions.Unstage():
                self.offers.withdraw(decision.model)
                self.store.drop(decision.model)
            case actions.Drain() | actions.Resume():
                pass  # it only changes what the scheduler dispatches
            case _:
                assert_never(decision)

    # requests

    def _dispatch(self, action: actions.Dispatch) -> None:
        live = self.live[action.request]
        live.worker = action.worker
        self.pool.send(action.worker, messages.Submit(live.id, live.path, live.body, live.deadline))

    def _refuse(self, action: actions.Refuse) -> None:
        status, kind, code = _REFUSALS[action.kind]
        live = self.live[action.request]
        self.metrics.refused(live, action.kind)
        if action.kind == "unavailable":
            self.journal.refused(live.model, action.reason)
        reason = self.paths.hide(action.reason)
        live.done(RequestError(status, f"{reason}.", kind=kind, code=code, retry_after=action.retry_after or None))

    def _abort(self, action: actions.Abort) -> None:
        live = self.live[action.request]
        if live.worker is not None:
            self.pool.send(live.worker, messages.Abort(live.id))
        self.metrics.aborted(live)
        reason = self.paths.hide(action.reason)
        live.done(RequestError(503, f"{reason}.", kind="server_error", code="aborted", retry_after=1.0))

    # workers

    def _activate(self, action: actions.Activate) -> None:
        self.ordered_at[action.worker] = time.monotonic()
        stored = self.store.get(action.model)
        self.pool.send(
            action.worker,
            messages.Activate(
                self.catalog.spec(action.model),
                stored.manifest if stored is not None else None,
                stored.ref if stored is not None else None,
                self.scheduler.registry.weight_store.verify,
                action.kv_limit,
                action.kv_revision,
            ),
        )
