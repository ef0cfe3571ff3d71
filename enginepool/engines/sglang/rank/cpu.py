"""A rank on the CPU: weights are copied, nothing can be paused, and the KV cache has a fixed size."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from enginepool.engines.sglang.protocol import KvLimitSet
from enginepool.messages import SegmentRef
from enginepool.weights.layout import PIECE, base_tensor
from enginepool.weights.segment import open_segment


class CpuDevice:
    gpu_id = 0
    memory = 0

    def __init__(self) -> None:
        self._seconds = 0.0

    def prepare_first_step(self) -> None:
        """There is nothing to load."""

    def building(self) -> AbstractContextManager[None]:
        return nullcontext()

    def note_activity(self) -> None:
        """There is no background work to postpone."""

    def allocate(self, nbytes: int) -> Tensor:
        return torch.empty(nbytes, dtype=torch.uint8)

    def offer(self, model: str, segment: SegmentRef) -> None:
        """There is nothing to prepare."""

    def withdraw(self, model: str) -> None:
        """There is nothing to release."""

    def copy(self, model: str, segment: SegmentRef, flat: Tensor) -> None:
        """Copy the segment in pieces. Views of it would not do, since SGLang may write to weights and it is
        read-only."""
        began = time.monotonic()
        mapped = open_segment(segment)
        try:
            source = base_tensor(mapped.view())
            for start in range(0, mapped.nbytes, PIECE):
                flat[start : start + PIECE].copy_(source[start : start + PIECE])
            del source
        finally:
            mapped.close()
        self._seconds = time.monotonic() - began

    def await_copy_on_stream(self) -> None:
        """`copy` is synchronous."""

    def wait_nearly_copied(self) -> float:
        return self._seconds

    def wait_copied(self) -> float:
        return self._seconds

    def kv_cache(self, scheduler: Any) -> FixedKv:
        return FixedKv(scheduler)

    def install(self, scheduler: Any) -> None:
        """There is nothing to install."""

    def capture_next_graph(self, scheduler: Any) -> bool:
        return False

    def pause(self) -> None:
        """Weights stay in memory, as nothing would be gained."""

    def resume(self) -> None:
        """Nothing was paused."""

    def forget(self) -> None:
        """`upstream.forget_model` has released everything."""

    def used(self) -> int:
        return 0

    def reserved(self) -> int:
        return 0


class FixedKv:
    """SGLang's own pool, allocated at its maximum size. Limits below that are reported as not applied."""

    def __init__(self, scheduler: Any) -> None:
        sizes = scheduler.token_to_kv_pool_allocator.get_kvcache().get_kv_size_bytes()
        self.mapped: int = int(sum(sizes) if isinstance(sizes, tuple) else sizes)
        self.bytes_per_token = self.mapped / scheduler.max_total_num_tokens
        self._tokens: int = scheduler.max_total_num_tokens
        self._allocator = scheduler.token_to_kv_pool_allocator

    @property
    def allocated(self) -> int:
        return int((self._tokens - self._allocator.available_size()) * self.bytes_per_token)

    def set_limit(self, revision: int, nbytes: int) -> KvLimitSet:
        return KvLimitSet(revision, self.mapped, applied=self.mapped <= nbytes)

    def step(self) -> None:
        return None

    def pause(self) -> None:
        """Memory cannot be released."""

    def resume(self) -> None:
        """No memory was released."""
