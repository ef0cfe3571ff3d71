"""Handles a queue in which no request fits into the KV cache while nothing is running.

SGLang 0.5.17 assumes that its pool never changes: when nothing more fits it sets `batch_is_full` and tries again only
after a running request has ended. With none running it would never try again, not even with requests that do fit, and
would busy-loop meanwhile.
"""

from __future__ import annotations

import logging
import time
from http import HTTPStatus
from typing import Any

log = logging.getLogger("prism.rank")

PATIENCE = 30.0
"""Seconds that a request waits for a higher KV limit, with nothing else running, before it is refused."""
LOOK_INTERVAL = 0.02
"""Seconds between attempts; an incoming message ends the pause early."""


class StalledQueue:
    """Watches the queue of one Scheduler; `look` must be called between its steps."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._since: float | None = None

    def look(self) -> None:
        """If the queue is stalled, pause and make the next step try again; refuse the first request after
        `PATIENCE`."""
        if not self._nothing_fits():
            self._since = None
            return
        scheduler = self._scheduler
        if scheduler.chunked_req is not None:
            self._requeue_chunked()
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > PATIENCE:
            self._since = None
            self._refuse()
        scheduler.running_batch.batch_is_full = False
        # Wait on the Scheduler's own sockets, so that an incoming request or KV limit is handled without delay.
        scheduler.idle_sleeper.poller.poll(LOOK_INTERVAL * 1000)

    def _nothing_fits(self) -> bool:
        scheduler = self._scheduler
        if scheduler.last_batch or not scheduler.running_batch.is_empty():
            return False
        return scheduler.chunked_req is not None or bool(
            scheduler.waiting_queue and scheduler.running_batch.batch_is_full
        )

    def _requeue_chunked(self) -> None:
        """Requeue a partly prefilled prompt, as it holds slots that others need; most of its work stays in the prefix
        cache."""
        from sglang.srt.managers.schedule_batch import release_req

        scheduler = self._scheduler
        req, scheduler.chunked_req = scheduler.chunked_req, None
        release_req(
            req=req,
            remaing_req_count=0,
            server_args=scheduler.server_args,
            req_to_token_pool=scheduler.req_to_token_pool,
            token_to_kv_pool_allocator=scheduler.token_to_kv_pool_allocator,
            tree_cache=scheduler.tree_cache,
            hisparse_coordinator=None,
        )
        scheduler._add_request_to_queue(req, is_retracted=True)

    def _refuse(self) -> None:
        """Refuse the first request in the queue, which SGLang sorted at its last attempt."""
        from sglang.srt.managers.io_struct import AbortReq

        scheduler = self._scheduler
        req = scheduler.waiting_queue.pop(0)
        tokens = len(req.origin_input_ids) + len(req.output_ids)
        message = f"The request ({tokens} tokens so far) does not fit into the KV cache this worker has at present."
        log.warning("a request of %d tokens did not fit into the KV cache for %.0f s", tokens, PATIENCE)
        reason = {"type": "abort", "status_code": HTTPStatus.SERVICE_UNAVAILABLE, "message": message}
        scheduler.ipc_channels.send_to_tokenizer.send_output(AbortReq(rid=req.rid, finished_reason=reason), req)
