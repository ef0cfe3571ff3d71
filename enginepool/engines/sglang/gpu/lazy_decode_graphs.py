"""Decode graphs captured when they are first wanted, so that a model's first token waits for none of them.

SGLang 0.5.17 captures a graph for every batch size before it serves. Here a size is captured just before the
first decode step of that size, and the others one by one while the rank is idle.

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
"""Held while a graph is captured, which other threads' calls of CUDA may spoil."""


def adapt() -> None:
    """Once per process: SGLang makes this runner in place of its own."""
    decode_cuda_graph_runner.DecodeCudaGraphRunner = LazyDecodeGraphs
    decode_cuda_graph_runner.graph_capture = on_one_stream


@cache
def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def on_one_stream(stream: Any = None) -> Any:
    """SGLang would take another for each capture, and cuBLAS keeps a workspace, tens of megabytes, for every stream."""
    return graph_capture(stream=_stream() if stream is None else stream)


def install(scheduler: Any) -> None:
    """Have the Scheduler send what it has, such as a first token, before a step for which a graph is captured."""
    graphs = _graphs_of(scheduler)
    if graphs is not None:
        is_last_one_first = scheduler.is_disable_overlap_for_batch
        scheduler.is_disable_overlap_for_batch = lambda batch, last_batch: (
            is_last_one_first(batch, last_batch) or (len(scheduler.result_queue) > 0 and graphs.lacks(batch))
        )


def capture_next(scheduler: Any) -> bool:
    """One more graph, some 50 ms. False: none is missing."""
    graphs = _graphs_of(scheduler)
    if graphs is None or not graphs.missing:
        return False
    graphs.capture_sizes(graphs.missing[:1])
    return True


def _graphs_of(scheduler: Any) -> LazyDecodeGraphs | None:
    """None for a model that is served without."""
    graphs = scheduler.tp_worker.model_runner.decode_cuda_graph_runner
    return graphs if isinstance(graphs, LazyDecodeGraphs) else None


class LazyDecodeGraphs(DecodeCudaGraphRunner):  # type: ignore[misc]
    """SGLang's runner of decode graphs. `missing` are the batch sizes, ascending, that have none yet."""

    capture_bs: list[int]
    missing: list[int]

    def capture(self) -> None:
        """SGLang calls this at the end of the construction, and never again."""
        self.missing = list(self.capture_bs)

    def can_run_graph(self, forward_batch: Any) -> bool:
        if not super().can_run_graph(forward_batch):
            return False
        size = self._pad_to_bucket(forward_batch.batch_size, self.capture_bs)
        if size in self.missing:
            self.capture_sizes([size])
        return True

    def lacks(self, batch: Any) -> bool:
        """Whether a graph will be captured for this batch of the Scheduler (None: for no step at all)."""
        if not self.missing or batch is None or not batch.forward_mode.is_decode():
            return False
        size = batch.batch_size()
        return size <= self.max_bs and self._pad_to_bucket(size, self.capture_bs) in self.missing

    def capture_sizes(self, sizes: list[int]) -> None:
        """With no step under way, or from within one before anything of it is launched."""
        torch.cuda.synchronize()  # what is under way may read the buffers that are about to be filled
        known, self.capture_bs = self.capture_bs, sizes
        try:
            with undisturbed(), model_capture_mode():
                super().capture()
        finally:
            self.capture_bs = known
        self.missing = [size for size in self.missing if size not in sizes]


class SilentProgress(list[int]):
    """Stands in for a progress bar, which would be drawn into the log."""

    def set_description(self, text: str) -> None:
        pass
