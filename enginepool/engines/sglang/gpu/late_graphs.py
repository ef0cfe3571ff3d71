"""Decode graphs captured when they are first wanted, so that a model's first token waits for none of them.

SGLang 0.5.15.post1 captures a graph for every batch size before it serves. Here a size is captured just before the
first decode step of that size, and the others one by one while the rank is idle.

To be imported after SGLang.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from sglang.srt.model_executor.runner import decode_cuda_graph_runner
from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

undisturbed: Callable[[], AbstractContextManager[None]] = nullcontext
"""Held while a graph is captured, which other threads' calls of CUDA may spoil."""


def adapt() -> None:
    """Once per process: SGLang makes this runner in place of its own."""
    decode_cuda_graph_runner.DecodeCudaGraphRunner = LateGraphs


class LateGraphs(DecodeCudaGraphRunner):  # type: ignore[misc]
    """SGLang's runner of decode graphs. `missing` are the batch sizes, ascending, that have none yet."""

    capture_bs: list[int]

    def __init__(self, model_runner: Any) -> None:
        self.missing: list[int] = []
        self._constructed = False
        super().__init__(model_runner)
        self._constructed = True

    def capture(self) -> None:
        """SGLang calls this at the end of the construction, and again when the kind of graph changes."""
        if self._constructed:
            with undisturbed():
                super().capture()
            self.missing = []
        else:
            self.missing = list(self.capture_bs)

    def can_run_graph(self, forward_batch: Any) -> bool:
        if not super().can_run_graph(forward_batch):
            return False
        size = self._pad_to_bucket(forward_batch.batch_size, self.capture_bs)
        if size in self.missing:
            self._capture(size)
        return True

    def capture_next(self) -> None:
        """The smallest size that is missing; there must be one."""
        self._capture(self.missing[0])

    def _capture(self, size: int) -> None:
        sizes: list[int] = self.capture_bs
        self.capture_bs = [size]
        torch.cuda.synchronize()  # what is under way may read the buffers that are about to be filled
        try:
            with undisturbed(), model_capture_mode():
                super().capture()
        finally:
            self.capture_bs = sizes
        self.missing.remove(size)
