"""Reserves KV slots before SGLang schedules a step, so that running out of KV memory cannot end a rank.

SGLang 0.5.17 counts free tokens first and allocates later; if that fails, a RuntimeError leaves the Scheduler's loop
(`alloc_token_slots` of mem_cache/common.py, from `prepare_for_extend` and `prepare_for_decode`). kvcached 0.1.6 fails
even earlier: its allocator for pages of one token builds a tensor from None. With elastic memory the count is easily
wrong: another process may have taken the memory, kvcached's own count is up to 0.1 s old, and while a limit is being
lowered, the pages of evicted prefix-cache entries are unmapped instead of becoming free.

So a request joins a batch, and a batch decodes, only once its slots are allocated. Requests without slots wait, and
decoding requests are retracted until the others fit, which is what SGLang does when its count says so.

Only pages of one token are supported; a model that needs larger ones is refused. Speculative decoding is not guarded,
but cannot be enabled in the registry. To be imported after `warm` has run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.managers import scheduler as scheduler_module
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.schedule_policy import AddReqResult, PrefillAdder
from sglang.srt.mem_cache.base_prefix_cache import DecLockRefParams, EvictParams
from sglang.srt.mem_cache.common import evict_from_tree_cache
from torch import Tensor

from config.errors import EngineError
from enginepool.engines.sglang.prefix_cache import evictable

LEAST_ROOM = 128
"""Tokens of the answer (or fewer if it is limited to that) that must fit for a request to start alone in the rank."""


def adapt() -> None:
    """Patch SGLang. Once per process, after SGLang was imported."""
    scheduler_module.PrefillAdder = ReservingPrefillAdder
    ScheduleBatch.check_decode_mem = _reserving_check(ScheduleBatch.check_decode_mem)
    ScheduleBatch.retract_decode = _aborting_nobody(ScheduleBatch.retract_decode)


def install(scheduler: Any) -> None:
    """Add a reserve to a Scheduler's allocator, before its first request.

    Raises:
        EngineError: the KV cache has pages of more than one token.
    """
    allocator = scheduler.token_to_kv_pool_allocator
    if allocator.page_size != 1:
        backend = scheduler.server_args.attention_backend
        pages = f"{allocator.page_size} tokens"
        raise EngineError(
            f"{scheduler.server_args.served_model_name}: {backend} uses KV pages of {pages}; only 1 is supported"
        )
    allocator.reserve = SlotReserve(allocator)


class SlotReserve:
    """Slots allocated in advance, between SGLang and its allocator. They count as available until they are taken."""

    def __init__(self, allocator: Any) -> None:
        self._slots = torch.empty((0,), dtype=torch.int64, device=allocator.device)
        self._alloc, self._available, self._free = allocator.alloc, allocator.available_size, allocator.free
        allocator.alloc, allocator.available_size = self.take, self.available

    def add(self, tokens: int, tree_cache: Any) -> bool:
        """Reserve slots for the `take` that follows, evicting prefix-cache entries if necessary; returns success."""
        evict_from_tree_cache(tree_cache, len(self._slots) + tokens)
        # By SGLang's count there is room now, but only the allocation itself can tell. Evict until it succeeds.
        while (slots := self._try(tokens)) is None:
            if evictable(tree_cache) == 0:
                return False
            tree_cache.evict(EvictParams(num_tokens=tokens, swa_num_tokens=tokens))
        self._slots = torch.cat((self._slots, slots)) if len(self._slots) else slots
        return True

    def drop(self) -> None:
        """Free the slots that were not taken."""
        if len(self._slots):
            unused, self._slots = self._slots, self._slots[:0]
            self._free(unused)

    def forget(self) -> None:
        """Drop the reserved slots without freeing them, because the whole allocator is about to be cleared."""
        self._slots = self._slots[:0]

    def take(self, need_size: int) -> Tensor | None:
        """Replaces the allocator's `alloc`."""
        if need_size > len(self._slots):
            return self._try(need_size)
        taken, self._slots = self._slots[:need_size], self._slots[need_size:]
        return taken

    def available(self) -> int:
        """Replaces the allocator's `available_size`."""
        return int(self._available()) + len(self._slots)

    def _try(self, tokens: int) -> Tensor | None:
        try:
            slots: Tensor | None = self._alloc(tokens)
        except TypeError:  # kvcached builds a tensor from None when memory runs out
            return None
        return slots


def _reserve_of(allocator: Any) -> SlotReserve | None:
    return getattr(allocator, "reserve", None)


class ReservingPrefillAdder(PrefillAdder):  # type: ignore[misc]
    """SGLang's choice of requests to prefill, restricted to those whose slots can be reserved."""

    _chunk_waits = False
    """Whether the partly prefilled prompt found no slots, so that no other request may take any."""

    def add_one_req(self, req: Any, has_chunked_req: bool, truncation_align_size: int | None) -> Any:
        if self._chunk_waits:
            return AddReqResult.NO_TOKEN
        before, added = self._budget(), len(self.can_run_list)
        result = super().add_one_req(req, has_chunked_req, truncation_align_size)
        if result is AddReqResult.NO_TOKEN and not self.can_run_list and not has_chunked_req and self._is_free():
            result = self._squeeze_in(req, truncation_align_size)
        if len(self.can_run_list) == added or self._reserve(req):
            return result
        self._take_back(before)
        # SGLang locked the request's cached prefix when it added the request.
        self.tree_cache.dec_lock_ref(req.last_node, DecLockRefParams(swa_uuid_for_lock=req.swa_uuid_for_lock))
        return AddReqResult.NO_TOKEN

    def add_chunked_req(self, req: Any) -> Any:
        before = self._budget()
        left = super().add_chunked_req(req)
        if not self.can_run_list or self._reserve(req):
            return left
        self._take_back(before)
        # An empty range is SGLang's way to say that the chunk does not run in this step.
        req.set_extend_range(len(req.prefix_indices), len(req.prefix_indices))
        self._chunk_waits = True
        return req

    def _is_free(self) -> bool:
        return self.running_batch is None or self.running_batch.is_empty()

    def _squeeze_in(self, req: Any, truncation_align_size: int | None) -> Any:
        """Let a request start alone although its longest possible answer does not fit: it may end sooner, or else be
        retracted."""
        sampling = req.sampling_params
        wanted, done = sampling.max_new_tokens, len(req.output_ids)
        room = int(self.rem_total_tokens) - len(req.full_untruncated_fill_ids) - self.page_size - 1
        if room < min(wanted - done, LEAST_ROOM):
            return AddReqResult.NO_TOKEN
        sampling.max_new_tokens = min(wanted, done + room)  # only for SGLang's count, restored below
        try:
            return super().add_one_req(req, False, truncation_align_size)
        finally:
            sampling.max_new_tokens = wanted

    def _reserve(self, req: Any) -> bool:
        reserve = _reserve_of(self.token_to_kv_pool_allocator)
        return reserve is None or reserve.add(req.extend_range.length, self.tree_cache)

    def _budget(self) -> dict[str, Any]:
        """The counters and flags that SGLang's methods change, to be restored by `_take_back`."""
        return {name: it for name, it in vars(self).items() if it is None or isinstance(it, (int, float))}

    def _take_back(self, before: dict[str, Any]) -> None:
        """Undo adding the last request."""
        self.can_run_list.pop()
        self.__dict__.update(before)


def _reserving_check(check: Callable[..., bool]) -> Callable[..., bool]:
    """Wraps SGLang's check for whether a batch can decode another token: yes if its slots can be reserved."""

    def check_decode_mem(batch: Any, selected_indices: list[int] | None = None) -> bool:
        reserve = _reserve_of(batch.token_to_kv_pool_allocator)
        if reserve is None or not batch.spec_algorithm.is_none():
            return check(batch, selected_indices)
        reserve.drop()  # slots from an earlier check, with more requests in the batch
        return reserve.add(batch.new_tokens_required_next_decode(selected_indices), batch.tree_cache)

    return check_decode_mem


def _aborting_nobody(retract: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a retraction. SGLang aborts the last request if it does not fit; here it waits too, as the KV limit may be
    raised again."""

    def retract_decode(batch: Any, server_args: Any) -> tuple[list[Any], float, list[Any]]:
        retracted, ratio, aborted = retract(batch, server_args)
        for req in aborted:
            req.to_finish = None
        return [*retracted, *aborted], ratio, []

    return retract_decode
