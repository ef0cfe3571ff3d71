"""Begin anew with every request that a Scheduler has: whatever state an exception left, none of it is used again.

A step that raised may have taken slots that no request knows of, and given back some of a request's. So nothing is
given back one by one. All KV memory, request slots and prefix-cache entries are free again at once, as when SGLang
flushes its cache, and the requests wait to be prefilled: prompt and answer so far, as when SGLang retracts them.

Of SGLang 0.5.17. To be imported after `warm` only.
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
"""What reading a batch out changes of a request, and a retraction does not set back."""
_progress = attrgetter(*_PROGRESS)
_BY_TOKEN = (
    "output_token_logprobs_val",
    "output_token_logprobs_idx",
    "output_top_logprobs_val",
    "output_top_logprobs_idx",
    "output_token_ids_logprobs_val",
    "output_token_ids_logprobs_idx",
)
"""Lists of `Req.logprob` with one entry for each token of the answer, or none."""

_GRAMMARS = (("json", "json_schema"), ("regex", "regex"), ("ebnf", "ebnf"), ("structural_tag", "structural_tag"))
"""SGLang's kinds, and the sampling parameters that ask for them."""
FAILED = "The engine failed on this request."

Mark = tuple[int, tuple[Any, ...]]


def mark(req: Any) -> Mark:
    """How far a request has come, for `set_back`."""
    return len(req.output_ids), _progress(req)


def set_back(req: Any, to: Mark) -> None:
    """Forget the tokens that came since `mark`, of which nothing was sent."""
    tokens, progress = to
    for name, value in zip(_PROGRESS, progress, strict=True):
        setattr(req, name, value)
    if len(req.output_ids) == tokens:
        return
    del req.output_ids[tokens:]
    req.surr_offset = None  # what the detokenizer gets is put together anew
    for name in _BY_TOKEN:
        if entries := getattr(req.logprob, name):
            del entries[tokens:]


def live(scheduler: Any) -> list[Any]:
    """Every request of the Scheduler's that waits or runs, those first that have run for longest."""
    batches = [scheduler.running_batch, scheduler.last_batch]
    batches += [batch for batch, _ in getattr(scheduler, "result_queue", ())]
    running = [req for batch in batches if batch is not None for req in batch.reqs]
    pieces = [scheduler.chunked_req] if scheduler.chunked_req is not None else []
    everything = dict.fromkeys([*running, *pieces, *scheduler.waiting_queue])
    return [req for req in everything if not req.finished()]


def start_over(scheduler: Any, reqs: Iterable[Any]) -> None:
    """Free everything, and have `reqs` wait: all that are to live. Those that their client gave up are ended."""
    _forget_batches(scheduler)
    _free_all(scheduler)
    for req in reqs:
        try:
            _have_wait(scheduler, req)
        except Exception:
            log.exception("a request could not be set back, and is ended")
            end(scheduler, req)


def end(scheduler: Any, req: Any) -> None:
    """Answer a request, the Scheduler's or still as its front half has sent it, with an error."""
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
        torch.cuda.synchronize()  # what was launched still writes into the slots
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
    """The request's grammar after the answer so far: it may have seen a token that is forgotten."""
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
