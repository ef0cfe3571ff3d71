"""What the parts of the gateway share. All of it is touched on the event loop only, so there are no locks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from config.device_memory import device_bytes
from config.engines import facts_of
from config.model_files import kv_bytes_per_token
from config.registry import Registry
from enginepool.pool.store import WeightStore
from enginepool.pool.supervisor import Supervisor
from gateway.catalog import Catalog
from gateway.device_memory import capacities
from gateway.http.server_paths import ServerPaths
from gateway.journal import Journal
from gateway.live import LiveRequest
from gateway.metrics import Metrics
from gateway.profile import read_profile
from gateway.recording import Recorder
from scheduler.actions import Answer, AnyAction
from scheduler.events import AnyEvent
from scheduler.replay.recorded import VERSION, Header


class Context:
    """`feed` gives the scheduler an event, `spawn` runs a task that a stop ends, `abandon` gives a request up.

    With `record`, what the scheduler is told and decides is written to that file.
    """

    pool: Supervisor
    store: WeightStore

    def __init__(
        self,
        registry: Registry,
        feed: Callable[[AnyEvent], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        abandon: Callable[[LiveRequest], None],
        *,
        validate: bool,
        record: Path | None,
    ) -> None:
        self.feed = feed
        self.spawn = spawn
        self.abandon = abandon
        self.catalog = Catalog(registry)
        self.paths = ServerPaths(registry.models)
        self._record = record
        self._recordings = 0
        self.recorder: Recorder | None = None
        self.begin(_setup(registry, validate))
        self.live: dict[int, LiveRequest] = {}
        """Requests in flight."""
        self.answers: dict[int, asyncio.Future[Answer]] = {}
        """Operators' commands that wait for their outcome."""
        self.activating: dict[int, float] = {}
        """When each worker's activation under way was ordered."""
        self.loading: dict[str, tuple[int, int]] = {}
        """Bytes done and in all of each model on its way into host memory."""
        self.draining = ""
        """Why new requests are refused; empty while they are not."""
        self.changing = False
        """Whether the policy is being changed, for which new requests wait."""
        self.metrics = Metrics(lambda: self.scheduler.state, self.live)
        self.journal = Journal()

    def begin(self, setup: Header) -> None:
        """A new scheduler decides from here on. Each has a recording of its own: `run.jsonl`, `run.2.jsonl`, ..."""
        self.setup = setup
        self.registry = setup.registry
        self.scheduler = setup.scheduler()
        if self.recorder is not None:
            self.recorder.close()
        if self._record is not None:
            self._recordings += 1
            self.recorder = Recorder(_numbered(self._record, self._recordings), setup, self.scheduler)
        self.decide: Callable[[AnyEvent, float], list[AnyAction]] = (self.recorder or self.scheduler).handle
        """`Scheduler.handle`, recorded or not."""


def _setup(registry: Registry, validate: bool) -> Header:
    return Header(
        VERSION,
        registry,
        weight_bytes={model.name: device_bytes(registry, model) for model in registry.models},
        capacities=capacities(registry.pool),
        kv_bytes={model.name: kv_bytes_per_token(model) for model in registry.models},
        profile=read_profile(registry.scheduler.profile),
        staging=facts_of(registry.pool).needs_weights,
        validate=validate,
    )


def _numbered(record: Path, number: int) -> Path:
    return record if number == 1 else record.with_name(f"{record.stem}.{number}{record.suffix}")
