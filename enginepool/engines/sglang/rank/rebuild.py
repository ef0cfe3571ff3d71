"""Restarts all requests of a Scheduler from scratch, discarding any state that an exception may have left inconsistent.

A step that raised may have allocated slots that no request knows of, or freed some of a request's. So nothing is freed
individually: all KV memory, request slots and prefix-cache entries are freed at once, as when SGLang flushes its cache,
and the requests wait to be prefilled with prompt and answer so far, as when SGLang retracts them.

Written for SGLang 0.5.17. To be imported after `warm` has run.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable
from http import HTTPStatus
from operator import attrgetter
from typing import Any

import torch
from sglang.srt.managers.io_struct import AbortReq
from sglang.srt.managers.schedule_batch import ScheduleBatch

log = logging.getLogger("prism.rank")

_PROGRESS = (
    "finished_reason",
    "finished_len",
    "finished_output",
    "to_finish",
    "send_token_offset",
    "send_decode_id_offset",
    "send_output_token_logprobs_offset",
    "send_output_sampling_mask_offset",
    "input_logprob_sent",
    "reasoning_tokens",
    "_is_reasoning_over",
    "_think_end_match_len",
)
"""Attributes of a request that reading out a batch changes and that a retraction does not reset."""
_progress = attrgetter(*_PROGRESS)
_BY_TOKEN = (
    "output_token_logprobs_val",
    "output_token_logprobs_idx",
    "output_top_logprobs_val",
    "output_top_logprobs_idx",
    "output_token_ids_logprobs_val",
    "output_token_ids_logprobs_idx",
)
"""Lists of `Req.logprob` with one entry per token of the answer, or none."""

_GRAMMARS = (("json", "json_schema"), ("regex", "regex"), ("ebnf", "ebnf"), ("structural_tag", "structural_tag"))
"""SGLang's kinds of grammar, and the sampling parameters that request them."""
FAILED = "The engine failed on this request."

Mark = tuple[int, tuple[Any, ...]]
"""Number of output tokens, and the values of `_PROGRESS`."""


def mark(req: Any) -> Mark:
    """Record a request's progress for `set_back`."""
    return len(req.output_ids), _progress(req)


def set_back(req: Any, to: Mark) -> None:
    """Drop the tokens since `mark`, none of which may have been sent."""
    tokens, progress = to
    for name, value in zip(_PROGRESS, progress, strict=True):
        setattr(req, name, value)
    if len(req.output_ids) == tokens:
        return
    del req.output_ids[tokens:]
    req.surr_offset = None  # makes SGLang recompute what it sends to the detokenizer
    for name in _BY_TOKEN:
        if entries := getattr(req.logprob, name):
            del entries[tokens:]


def live(scheduler: Any) -> list[Any]:
    """All waiting and running requests of a Scheduler, longest running first."""
    batches = [scheduler.running_batch, scheduler.last_batch]
    batches += [batch for batch, _ in getattr(scheduler, "result_queue", ())]
    running = [req for batch in batches if batch is not None for req in batch.reqs]
    pieces = [scheduler.chunked_req] if scheduler.chunked_req is not None else []
    everything = dict.fromkeys([*running, *pieces, *scheduler.waiting_queue])
    return [req for req in everything if not req.finished()]


def start_over(scheduler: Any, reqs: Iterable[Any]) -> None:
    """Free everything and queue `reqs`, all the requests to keep; those already aborted are ended."""
    _forget_batches(scheduler)
    _free_all(scheduler)
    for req in reqs:
        try:
            _have_wait(scheduler, req)
        except Exception:
            log.exception("a request could not be restarted and was ended")
            end(scheduler, req)


def end(scheduler: Any, req: Any) -> None:
    """Answer a request, either the Scheduler's object or the message from the front half, with an error."""
    _answer(scheduler, req, {"type": "abort", "status_code": HTTPStatus.INTERNAL_SERVER_ERROR, "message": FAILED})


def _answer(scheduler: Any, req: Any, reason: dict[str, Any]) -> None:
    scheduler.ipc_channels.send_to_tokenizer.send_output(AbortReq(rid=req.rid, finished_reason=reason), req)


def _forget_batches(scheduler: Any) -> None:
    scheduler.waiting_queue = []
    scheduler.running_batch = ScheduleBatch(reqs=[], batch_is_full=False)
    scheduler.last_batch = scheduler.cur_batch_for_debug = None
    scheduler.chunked_req = scheduler._pending_chunked_abort_req = None
    if scheduler.enable_overlap:
        scheduler.result_queue.clear()
        scheduler.batch_record_buf = [None] * len(scheduler.batch_record_buf)


def _free_all(scheduler: Any) -> None:
    if scheduler.device != "cpu":
        torch.cuda.synchronize()  # kernels in flight still write to the slots
    scheduler.token_to_kv_pool_allocator.reserve.forget()
    scheduler.tree_cache.reset()
    scheduler.req_to_token_pool.clear()
    scheduler.token_to_kv_pool_allocator.clear()


def _have_wait(scheduler: Any, req: Any) -> None:
    req.kv = req.req_pool_idx = None
    req.full_untruncated_fill_ids = array("q")
    req.reset_for_retract()
    if req.to_finish is not None:
        _answer(scheduler, req, req.to_finish.to_json())
        return
    if req.grammar is not None:
        req.grammar = _replayed(scheduler, req)
    scheduler._add_request_to_queue(req, is_retracted=True)


def _replayed(scheduler: Any, req: Any) -> Any:
    """A new grammar advanced by the answer so far: the old one may have accepted a token that was dropped."""
    sampling = req.sampling_params
    key = next(((kind, value) for kind, name in _GRAMMARS if (value := getattr(sampling, name)) is not None), None)
    if key is None:
        return req.grammar
    grammar, cached = scheduler.grammar_manager.grammar_backend.get_cached_or_future_value(key, req.require_reasoning)
    if not cached:
        grammar = grammar.result()
    for token in req.output_ids:
        grammar.accept_token(token)
    return grammar
