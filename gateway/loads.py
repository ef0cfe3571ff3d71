"""Models on their way from disk into host memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from config.errors import StoreError
from enginepool.pool.store import WeightStore
from gateway.catalog import Catalog
from gateway.offers import Offers
from gateway.tasks import Tasks
from scheduler.events import AnyEvent, Staged, StageFailed

log = logging.getLogger("prism.gateway")

PROGRESS_INTERVAL = 1.0
"""Seconds between two log lines about one load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loads:
    store: WeightStore
    catalog: Catalog
    offers: Offers
    tasks: Tasks
    feed: Callable[[AnyEvent], None]
    progress: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes read so far and in all, by model."""

    def begin(self, model: str, expected: int) -> None:
        """Start to load a model; `expected` are its bytes, as far as they are known before."""
        self.tasks.spawn(self._load(model, expected))

    async def _load(self, model: str, expected: int) -> None:
        """Root of the task that brings one model into host memory."""
        began = time.monotonic()
        self.progress[model] = (0, expected)
        try:
            nbytes = await self.store.load(self.catalog.spec(model), self._reporter(model))
        except StoreError as error:
            log.error("loading %s failed: %s", model, error)
            self.feed(StageFailed(model, str(error)))
        else:
            seconds = time.monotonic() - began
            log.info("loaded %s: %.1f MiB into host memory in %.2f s", model, nbytes / 2**20, seconds)
            self.offers.offer(model)
            self.feed(Staged(model, nbytes))
        finally:
            self.progress.pop(model, None)

    def _reporter(self, model: str) -> Callable[[int, int], None]:
        logged = time.monotonic()

        def report(done: int, total: int) -> None:
            nonlocal logged
            self.progress[model] = (done, total)
            if time.monotonic() - logged >= PROGRESS_INTERVAL:
                logged = time.monotonic()
                log.info("loading %s: %.0f%% of %.1f MiB", model, 100 * done / max(total, 1), total / 2**20)

        return report
