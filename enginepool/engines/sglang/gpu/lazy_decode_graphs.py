"""Captures decode graphs lazily, so that a model's first token does not wait for them.

SGLang 0.5.17 captures a graph for every batch size before it serves. Here, a size is captured right before the first
decode step of that size, and the remaining ones one by one while the rank is idle.

To be imported after SGLang.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from sglang.srt.distributed.parallel_state import graph_capture
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext
"""Context in which to capture a graph; keeps other threads from making CUDA calls that would invalidate it."""


def adapt() -> None:
    """Make SGLang use this runner instead of its own. Once per process."""
    decode_cuda_graph_runner.DecodeCudaGraphRunner = LazyDecodeGraphs
    decode_cuda_graph_runner.graph_capture = on_one_stream


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def on_one_stream(stream: Any = None) -> Any:
    """Capture on one stream. SGLang would use a new one per capture, and cuBLAS keeps a workspace of tens of megabytes
    per stream."""
    return graph_capture(stream=_stream() if stream is None else stream)


def install(scheduler: Any) -> None:
    """Make the Scheduler send pending results, such as a first token, before a step that needs a graph captured."""
    graphs = _graphs_of(scheduler)
    if graphs is not None:
        is_last_one_first = scheduler.is_disable_overlap_for_batch
        scheduler.is_disable_overlap_for_batch = lambda batch, last_batch: (
            is_last_one_first(batch, last_batch) or (len(scheduler.result_queue) > 0 and graphs.lacks(batch))
        )


def capture_next(scheduler: Any) -> bool:
    """Capture one missing graph, which takes some 50 ms; returns False if none is missing."""
    graphs = _graphs_of(scheduler)
    if graphs is None or not graphs.missing:
        return False
    graphs.capture_sizes(graphs.missing[:1])
    return True


def _graphs_of(scheduler: Any) -> LazyDecodeGraphs | None:
    """The model's decode graphs; None if it is served without."""
    graphs = scheduler.tp_worker.model_runner.decode_cuda_graph_runner
    return graphs if isinstance(graphs, LazyDecodeGraphs) else None


class LazyDecodeGraphs(DecodeCudaGraphRunner):  # type: ignore[misc]
    """SGLang's runner of decode graphs. `missing` lists the batch sizes without a graph, ascending."""

    capture_bs: list[int]
    missing: list[int]

    def capture(self) -> None:
        """Capture nothing yet. SGLang calls this once, at the end of the construction."""
        self.missing = list(self.capture_bs)

    def can_run_graph(self, forward_batch: Any) -> bool:
        if not super().can_run_graph(forward_batch):
            return False
        size = self._pad_to_bucket(forward_batch.batch_size, self.capture_bs)
        if size in self.missing:
            self.capture_sizes([size])
        return True

    def lacks(self, batch: Any) -> bool:
        """Whether a graph will be captured for this batch of the Scheduler; `batch` is None if there is no step."""
        if not self.missing or batch is None or not batch.forward_mode.is_decode():
            return False
        size = batch.batch_size()
        return size <= self.max_bs and self._pad_to_bucket(size, self.capture_bs) in self.missing

    def capture_sizes(self, sizes: list[int]) -> None:
        """Capture graphs of these sizes, between steps or at the beginning of one, before its first kernel launch."""
        torch.cuda.synchronize()  # kernels in flight may still read the input buffers that capturing overwrites
        known, self.capture_bs = self.capture_bs, sizes
        try:
            with undisturbed(), model_capture_mode():
                super().capture()
        finally:
            self.capture_bs = known
        self.missing = [size for size in self.missing if size not in sizes]


class SilentProgress(list[int]):
    """Replaces a progress bar, which would be drawn into the log."""

    def set_description(self, text: str) -> None:
        pass
