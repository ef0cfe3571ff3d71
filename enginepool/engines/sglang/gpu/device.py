"""A rank's GPU: copies from registered memory, weights that can be paused, elastic KV cache."""

from __future__ import annotations

import os
import weakref
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from config.gpus import VISIBLE
from enginepool.engines.sglang.gpu import lazy_decode_graphs, lazy_prefill_graphs, upstream
from enginepool.engines.sglang.gpu.elastic_kv import ElasticKv
from enginepool.engines.sglang.gpu.host_copies import HostCopies, keep_host_quiet
from enginepool.engines.sglang.gpu.link import CopyTimer, Link
from enginepool.engines.sglang.gpu.memory import GpuMemory
from enginepool.engines.sglang.gpu.preload import preload_kernels
from enginepool.engines.sglang.sockets import kv_name
from enginepool.messages import SegmentRef

_CONTEXT = 700 * 2**20
"""Estimated bytes of a CUDA context with its kernels, if NVML does not report what this process uses."""


class GpuDevice:
    """The only GPU visible to this process. Its construction creates the CUDA context and runs the first kernels."""

    gpu_id = 0

    def __init__(self) -> None:
        upstream.name_this_rank(kv_name(os.getppid()))
        _warm_up()
        self.memory = torch.cuda.get_device_properties(0).total_memory
        self._memory = GpuMemory(os.environ[VISIBLE], os.getpid())
        self._copies = HostCopies()
        lazy_decode_graphs.undisturbed = self._copies.paused
        self._link = Link()
        self._copying: CopyTimer | None = None
        self._kv: weakref.ref[ElasticKv] | None = None
        self._weights = self._paused = 0
        """Bytes allocated for weights, and how many of them are paused."""

    def prepare_first_step(self) -> None:
        preload_kernels()

    def building(self) -> AbstractContextManager[None]:
        """No memory is registered meanwhile, since that would slow the driver down."""
        keep_host_quiet()
        return self._copies.paused()

    def note_activity(self) -> None:
        self._copies.note_activity()

    def allocate(self, nbytes: int) -> Tensor:
        self._weights = nbytes
        return upstream.allocate_weights(nbytes)

    def offer(self, model: str, segment: SegmentRef) -> None:
        self.wait_copied()  # a segment in use by the copy may be closed below
        self._copies.offer(model, segment)

    def withdraw(self, model: str) -> None:
        self.wait_copied()
        self._copies.withdraw(model)

    def copy(self, model: str, segment: SegmentRef, flat: Tensor) -> None:
        self._copying = self._link.copy(self._copies.offer(model, segment), flat)

    def await_copy_on_stream(self) -> None:
        if self._copying is not None:
            self._copying.await_copy_on_stream()

    def wait_nearly_copied(self) -> float:
        return self._copying.expected_seconds() if self._copying is not None else 0.0

    def wait_copied(self) -> float:
        return self._copying.seconds() if self._copying is not None else 0.0

    def kv_cache(self, scheduler: Any) -> ElasticKv:
        kv = ElasticKv(scheduler)
        self._kv = weakref.ref(kv)
        return kv

    def install(self, scheduler: Any) -> None:
        lazy_decode_graphs.install(scheduler)

    def capture_next_graph(self, scheduler: Any) -> bool:
        """Capture a missing decode graph, or else a prefill graph: only missing decode graphs delay a step."""
        return lazy_decode_graphs.capture_next(scheduler) or lazy_prefill_graphs.capture_next(scheduler)

    def pause(self) -> None:
        self.wait_copied()
        upstream.pause_weights()
        torch.cuda.empty_cache()
        self._paused = self._weights

    def resume(self) -> None:
        upstream.resume_weights()
        self._paused = 0

    def forget(self) -> None:
        upstream.forget_gpu_memory()
        self._weights = self._paused = 0

    def used(self) -> int:
        used = self._memory.of_process()
        return self._account() if used is None else used

    def _account(self) -> int:
        """An estimate from this process's own accounting."""
        kv = self._kv() if self._kv is not None else None
        return _CONTEXT + self.reserved() - self._paused + (kv.mapped if kv is not None else 0)

    def reserved(self) -> int:
        return torch.cuda.memory_reserved()


def _warm_up() -> None:
    """Initialise what every model needs first: the context, the allocator, cuBLAS."""
    ones = torch.ones((16, 16), dtype=torch.bfloat16, device="cuda")
    (ones @ ones).sum().item()
    torch.cuda.synchronize()
