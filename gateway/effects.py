"""Carries out what the scheduler decides. Nothing here decides anything."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from config.errors import RequestError, StoreError
from enginepool import messages
from gateway import offers
from gateway.context import Context
from scheduler import actions, events

log = logging.getLogger("prism.gateway")

PROGRESS_INTERVAL = 1.0
"""Seconds between two lines of the log about one load."""

_REFUSALS: dict[actions.RefusalKind, tuple[int, str, str]] = {
    "queue_full": (429, "rate_limit_error", "queue_full"),
    "late": (429, "rate_limit_error", "deadline_unreachable"),
    "unavailable": (503, "server_error", "model_unavailable"),
    "fault": (500, "server_error", "device_fault"),
    "crash": (500, "server_error", "worker_crash"),
}
"""HTTP status, OpenAI's type and code of each refusal."""


class Effects:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._by_type: dict[type[Any], Callable[[Any], None]] = {
            actions.Dispatch: self._dispatch,
            actions.Refuse: self._refuse,
            actions.Abort: self._abort,
            actions.Activate: self._activate,
            actions.Drain: self._note,
            actions.Resume: self._note,
            actions.Park: self._park,
            actions.Blank: self._blank,
            actions.Recycle: self._recycle,
            actions.SetKvLimit: self._set_kv_limit,
            actions.Stage: self._stage,
            actions.Unstage: self._unstage,
            actions.Answer: self._answer,
        }

    def carry_out(self, action: actions.AnyAction) -> None:
        self._by_type[type(action)](action)

    def _dispatch(self, action: actions.Dispatch) -> None:
        live = self._context.live[action.request]
        live.worker = action.worker
        self._context.pool.send(action.worker, messages.Submit(live.id, live.path, live.body, live.deadline))

    def _refuse(self, action: actions.Refuse) -> None:
        status, kind, code = _REFUSALS[action.kind]
        live = self._context.live[action.request]
        self._context.metrics.refused(live, action.kind)
        if action.kind == "unavailable":
            self._context.journal.refused(live.model, action.reason)
        retry_after = action.retry_after or None
        reason = self._context.paths.hide(action.reason)
        live.done(RequestError(status, f"{reason}.", kind=kind, code=code, retry_after=retry_after))

    def _abort(self, action: actions.Abort) -> None:
        live = self._context.live[action.request]
        if live.worker is not None:
            self._context.pool.send(live.worker, messages.Abort(live.id))
        self._context.metrics.aborted(live)
        reason = self._context.paths.hide(action.reason)
        live.done(RequestError(503, f"{reason}.", kind="server_error", code="aborted", retry_after=1.0))

    def _activate(self, action: actions.Activate) -> None:
        self._note(action)
        self._context.activating[action.worker] = time.monotonic()
        stored = self._context.store.get(action.model)
        self._context.pool.send(
            action.worker,
            messages.Activate(
                self._context.catalog.spec(action.model),
                stored.manifest if stored is not None else None,
                stored.ref if stored is not None else None,
                self._context.registry.weight_store.verify,
                action.kv_limit,
                action.kv_revision,
            ),
        )

    def _park(self, action: actions.Park) -> None:
        self._note(action)
        self._context.pool.send(action.worker, messages.Park())

    def _blank(self, action: actions.Blank) -> None:
        self._note(action)
        self._context.pool.send(action.worker, messages.Blank())

    def _recycle(self, action: actions.Recycle) -> None:
        self._note(action)
        for live in self._context.live.values():
            if live.worker == action.worker and live.first_token_at is None:
                live.requeue()
        self._context.pool.recycle(action.worker, isolated=action.isolated)

    def _set_kv_limit(self, action: actions.SetKvLimit) -> None:
        self._context.pool.send(action.worker, messages.SetKvLimit(action.revision, action.nbytes))

    def _stage(self, action: actions.Stage) -> None:
        self._note(action)
        self._context.spawn(self._load(action.model))

    def _unstage(self, action: actions.Unstage) -> None:
        self._note(action)
        offers.withdraw(self._context, action.model)
        self._context.store.drop(action.model)

    def _answer(self, action: actions.Answer) -> None:
        future = self._context.answers.get(action.command)
        if future is not None and not future.done():
            future.set_result(action)

    def _note(self, action: actions.Decision) -> None:
        self._context.journal.decided(action, self._context.scheduler.state)

    async def _load(self, model: str) -> None:
        """Root of the task that brings one model into host memory."""
        began = time.monotonic()
        last_log = began

        def progress(done: int, total: int) -> None:
            nonlocal last_log
            self._context.loading[model] = (done, total)
            if time.monotonic() - last_log >= 1.0:
                last_log = time.monotonic()
                log.info("loading %s: %.0f%% of %.1f MiB", model, 100 * done / max(total, 1), total / 2**20)

        self._context.loading[model] = (0, self._context.scheduler.state.models[model].weight_bytes)
        try:
            nbytes = await self._context.store.load(self._context.catalog.spec(model), progress)
        except StoreError as error:
            log.error("loading %s failed: %s", model, error)
            self._context.feed(events.StageFailed(model, str(error)))
        else:
            seconds = time.monotonic() - began
            log.info("loaded %s: %.1f MiB into host memory in %.2f s", model, nbytes / 2**20, seconds)
            offers.offer(self._context, model)
            self._context.feed(events.Staged(model, nbytes))
        finally:
            self._context.loading.pop(model, None)
