"""The KV cache's limit in a rank: kvcached's, moved at run time, between two steps of SGLang's Scheduler."""

from __future__ import annotations

import time
from typing import Any

from enginepool.engines.sglang.protocol import KvLimitSet
from enginepool.engines.sglang.rank.prefix_cache import evictable

_SHRINK_TIMEOUT = 8.0
"""Seconds after which a limit that does not hold is reported as such. The gateway's own is longer."""


class ElasticKv:
    """Of one built Scheduler. Everything here runs in the rank's main thread."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._pending: tuple[int, int, float] | None = None
        self.bytes_per_token: float = sum(it.block_mem_size * it.num_layers * it.num_kv_buffers for it in _managers())

    @property
    def mapped(self) -> int:
        """Bytes of physical memory that the KV cache holds."""
        return sum(int(manager.get_mapped_memory_size()) for manager in _managers())

    @property
    def allocated(self) -> int:
        """Bytes that running requests and the prefix cache use."""
        return sum(_allocated(manager) for manager in _managers())

    def set_limit(self, revision: int, nbytes: int) -> KvLimitSet | None:
        """Begin to apply a limit; None while running requests and the prefix cache still hold more: `step` goes on."""
        self._pending = (revision, nbytes, time.monotonic() + _SHRINK_TIMEOUT)
        return self.step()

    def step(self) -> KvLimitSet | None:
        """One try of the pending limit, to be called between steps. The answer, once there is one."""
        if self._pending is None:
            return None
        revision, nbytes, deadline = self._pending
        state = _set(nbytes, revision)
        if state["overage_bytes"] > 0:
            self._evict(state["overage_bytes"])
            _trim()
            state = _set(nbytes, revision)
        applied = state["status"] in ("applied", "stale") and state["overage_bytes"] == 0
        if not applied and time.monotonic() < deadline:
            return None
        self._pending = None
        return KvLimitSet(revision, int(state["mapped_bytes"]), applied)

    def trim(self) -> None:
        """Give back pages that are mapped and hold nothing."""
        _trim()

    def _evict(self, nbytes: int) -> None:
        """Drop prefix-cache entries, the least recently used first, until `nbytes` more are free or none is left."""
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        tokens = int(nbytes / self.bytes_per_token) + 1
        # A page is free only when all its tokens are, so evicting just as many tokens may free none.
        before = self.mapped
        while evictable(self._scheduler.tree_cache) > 0 and before - self.mapped < nbytes:
            self._scheduler.tree_cache.evict(EvictParams(num_tokens=max(tokens, 1024)))


def _managers() -> list[Any]:
    from kvcached.pool_registry import get_registered_kv_cache_pools

    return [manager for manager, _ in get_registered_kv_cache_pools()]


def _allocated(manager: Any) -> int:
    padding = 1  # the block that is never free
    blocks = max(0, manager._get_num_alloced_blocks() - padding)
    return int(blocks * manager.block_mem_size * manager.num_layers * manager.num_kv_buffers)


def _set(nbytes: int, revision: int) -> dict[str, Any]:
    from kvcached.control import set_instance_memory_limit

    state: dict[str, Any] = set_instance_memory_limit(nbytes, revision=revision)
    return state


def _trim() -> None:
    for manager in _managers():
        manager.trim()
