"""Captures prefill graphs while the rank is idle. Without one, a short prompt takes longer to launch than to run.

SGLang 0.5.17 captures a graph for each of many prompt lengths before it serves. Here, a step runs without a graph until
one exists for its number of tokens.

Capturing for a second model in a process used to fail in torch's host allocator (`use_count > 0`): SGLang keeps one
memory pool for all graphs of a process, and torch does not accept graphs in a pool whose graphs are all gone.
`reset_context` drops the pool with the model, so that each model gets its own.

To be imported after SGLang.
"""

from __future__ import annotations

import contextlib
import logging
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.model_executor.model_runner_components import cuda_graph_setup
from sglang.srt.model_executor.runner import prefill_cuda_graph_runner
from sglang.srt.model_executor.runner.prefill_cuda_graph_runner import PrefillCudaGraphRunner

from config.errors import describe
from enginepool.engines.sglang.faults import is_device_fault
from enginepool.engines.sglang.gpu import lazy_decode_graphs

log = logging.getLogger("prism.rank")


def adapt() -> None:
    """Make SGLang use this runner instead of its own. Once per process."""
    cuda_graph_setup.PrefillCudaGraphRunner = LazyPrefillGraphs
    # SGLang skips graphs if less than 4 GiB are free at that moment; a capture here needs only some 100 MiB.
    cuda_graph_setup.should_skip_auto_prefill_cuda_graph_for_memory = lambda *args: False
    prefill_cuda_graph_runner.graph_capture = lazy_decode_graphs.on_one_stream
    prefill_cuda_graph_runner.freeze_gc = lambda enabled: contextlib.nullcontext()
    prefill_cuda_graph_runner.tqdm = SimpleNamespace(tqdm=lazy_decode_graphs.SilentProgress)


def capture_next(scheduler: Any) -> bool:
    """Capture one missing graph, which takes some 100 ms; returns False if none is missing."""
    graphs = scheduler.tp_worker.model_runner.prefill_cuda_graph_runner
    if not isinstance(graphs, LazyPrefillGraphs) or not graphs.missing:
        return False
    graphs.capture_one_size()
    return True


class LazyPrefillGraphs(PrefillCudaGraphRunner):  # type: ignore[misc]
    """SGLang's runner of prefill graphs. `missing` lists the numbers of tokens without a graph, ascending."""

    capture_num_tokens: list[int]
    """The numbers of tokens with a graph, ascending; SGLang pads a step to the next of them."""

    def __init__(self, model_runner: Any) -> None:
        self.missing: list[int] = []
        self._output: Any = None
        super().__init__(model_runner)

    def capture(self) -> None:
        """Capture nothing yet. SGLang calls this once, at the end of the construction."""
        self.missing, self.capture_num_tokens = self.capture_num_tokens, []

    def can_run_graph(self, forward_batch: Any) -> bool:
        if not self.capture_num_tokens or len(forward_batch.input_ids) > self.capture_num_tokens[-1]:
            return False
        return bool(super().can_run_graph(forward_batch))

    def capture_one_size(self) -> None:
        """Capture the largest missing graph, between steps. Largest first, since smaller graphs write their output into
        its memory.

        If capturing fails, for example for lack of memory, the model does without the missing graphs, at the cost of a
        few milliseconds of TTFT.
        """
        torch.cuda.synchronize()  # kernels in flight may still read the input buffers that capturing overwrites
        self._point_at_padding()
        size = self.missing.pop()
        captured, self.capture_num_tokens = self.capture_num_tokens, [size]
        try:
            with lazy_decode_graphs.undisturbed():
                super().capture()
            captured = [size, *captured]
        except RuntimeError as error:
            if is_device_fault(error):
                raise
            log.warning("prompts of up to %d tokens are prefilled without a CUDA graph: %s", size, describe(error))
            self.missing = []
        finally:
            self.capture_num_tokens = captured

    def _point_at_padding(self) -> None:
        """Reset the input buffers: a capture runs the model on them, and would overwrite the KV cache of the last batch
        they were filled for."""
        for name in self.buffer_registry.slot_names():
            self.buffer_registry.get_slot(name).reset_padding(0, self.max_num_tokens)

    def _capture_one_stream(self) -> None:
        """Share the output buffer between captures. SGLang allocates it once per session, of which it has only one."""
        self.backend._shared_output_buffer = self._output
        super()._capture_one_stream()
        self._output = self.backend._shared_output_buffer
