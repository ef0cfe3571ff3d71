"""Applies KV cache limits in a rank at run time through kvcached, between two steps of SGLang's Scheduler."""

from __future__ import annotations

import time
from typing import Any

import torch
from kvcached import vmm_ops
from torch import Tensor

from config.errors import EngineError, describe
from enginepool.engines.sglang.prefix_cache import evictable
from enginepool.engines.sglang.protocol import KvLimitSet

_SHRINK_TIMEOUT = 8.0
"""Seconds after which an unreachable limit is reported as not applied; shorter than the gateway's timeout."""

_PADDING = 0
"""The slot that padding reads and writes in SGLang, and also the offset of its page."""


class ElasticKv:
    """The KV cache of one Scheduler. Everything here runs in the rank's main thread."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._pending: tuple[int, int, float] | None = None
        self._padding = _padding_slots(scheduler.token_to_kv_pool_allocator.get_kvcache())
        self._clear_padding()
        self.bytes_per_token: float = sum(it.block_mem_size * it.num_layers * it.num_kv_buffers for it in _managers())

    @property
    def mapped(self) -> int:
        """Bytes of physical memory mapped."""
        return sum(int(manager.get_mapped_memory_size()) for manager in _managers())

    @property
    def allocated(self) -> int:
        """Bytes used by running requests and the prefix cache."""
        return sum(_allocated(manager) for manager in _managers())

    def set_limit(self, revision: int, nbytes: int) -> KvLimitSet | None:
        """Begin to apply a limit; returns None if the KV cache still exceeds it, and then `step` continues."""
        self._pending = (revision, nbytes, time.monotonic() + _SHRINK_TIMEOUT)
        return self.step()

    def step(self) -> KvLimitSet | None:
        """Try to apply the pending limit, between two steps; returns the result once there is one."""
        if self._pending is None:
            return None
        revision, nbytes, deadline = self._pending
        state = _set(nbytes, revision)
        if state["overage_bytes"] > 0:  # kvcached does not evict by itself: make room, then try again
            self._evict(state["overage_bytes"])
            _trim()
            state = _set(nbytes, revision)
        applied = state["status"] in ("applied", "stale") and state["overage_bytes"] == 0
        if not applied and time.monotonic() < deadline:
            return None
        self._pending = None
        return KvLimitSet(revision, int(state["mapped_bytes"]), applied)

    def pause(self) -> None:
        """Unmap all pages: free ones through kvcached, and the padding slot's page, which kvcached never frees, behind
        its back."""
        _trim()
        torch.cuda.synchronize()  # no kernel may still write to the padding slot
        for manager in _managers_with_padding():
            vmm_ops.unmap_from_kv_tensors([_PADDING], manager.group_id)

    def resume(self) -> None:
        """Map the padding slot's page again.

        Raises:
            EngineError: there is not enough memory.
        """
        try:
            for manager in _managers_with_padding():
                vmm_ops.map_to_kv_tensors([_PADDING], manager.group_id)
        except RuntimeError as error:
            raise EngineError(f"no memory for the KV cache's first page: {describe(error)}") from error
        self._clear_padding()

    def _clear_padding(self) -> None:
        """Zero the padding slot: kernels multiply its content by zero, which would not remove a NaN in fresh memory."""
        for manager in _managers():
            manager._wait_post_init()  # it maps the page
        for slot in self._padding:
            slot.zero_()

    def _evict(self, nbytes: int) -> None:
        """Evict the least recently used prefix-cache entries until `nbytes` more are unmapped or none are left."""
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        tokens = int(nbytes / self.bytes_per_token) + 1
        # A page is freed only when all its tokens are, so evicting exactly enough tokens may not free any page.
        before = self.mapped
        while evictable(self._scheduler.tree_cache) > 0 and before - self.mapped < nbytes:
            self._scheduler.tree_cache.evict(EvictParams(num_tokens=max(tokens, 1024)))


def _padding_slots(pool: Any) -> list[Tensor]:
    """The first slot of every buffer: keys and values by layer, or latent vectors of multi-head latent attention."""
    parts = [part for name in ("full_kv_pool", "swa_kv_pool") if (part := getattr(pool, name, None)) is not None]
    if parts:
        return [slot for part in parts for slot in _padding_slots(part)]
    names = ("k_buffer", "v_buffer", "kv_buffer")
    return [buffer[_PADDING] for name in names for buffer in getattr(pool, name, None) or ()]


def _managers() -> list[Any]:
    from kvcached.pool_registry import get_registered_kv_cache_pools

    return [manager for manager, _ in get_registered_kv_cache_pools()]


def _managers_with_padding() -> list[Any]:
    return [manager for manager in _managers() if manager.null_block is not None]


def _allocated(manager: Any) -> int:
    padding = 1  # the padding block is always allocated
    blocks = max(0, manager._get_num_alloced_blocks() - padding)
    return int(blocks * manager.block_mem_size * manager.num_layers * manager.num_kv_buffers)


def _set(nbytes: int, revision: int) -> dict[str, Any]:
    from kvcached.control import set_instance_memory_limit

    state: dict[str, Any] = set_instance_memory_limit(nbytes, revision=revision)
    return state


def _trim() -> None:
    for manager in _managers():
        manager.trim()
