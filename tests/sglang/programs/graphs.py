"""What LazyDecodeGraphs captures when, by SGLang's own code but for the graphs: each is replaced by a note of its size.

`graphs` prints a `Report` as JSON.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch

SIZES = [1, 2, 4, 8]


@dataclass
class Report:
    at_first: list[list[int]]
    """Sizes of each capture while the runner is made, and so on:"""
    for_three: list[list[int]]
    for_four: list[list[int]]
    idle: list[list[int]]
    after_failure: list[int]
    """Sizes that are missing when a capture has failed."""
    sizes: list[int]
    """The runner's own list afterwards."""
    lacks: dict[str, bool]
    written: list[int]
    """KV slots and requests that captures would have written to, when a batch had left the buffers full; lengths:"""
    lengths: list[int]
    sent_first: dict[str, bool]
    """Whether SGLang is to send what it has before a step for which a graph is captured."""


def step(size: int) -> Any:
    return SimpleNamespace(batch_size=size)


def batch(size: int, decode: bool = True) -> Any:
    mode = SimpleNamespace(is_decode=lambda: decode)
    return SimpleNamespace(batch_size=lambda: size, forward_mode=mode)


def fill_buffers(runner: Any) -> None:
    """As a batch leaves them behind."""
    for name in ("out_cache_loc", "req_pool_indices", "seq_lens"):
        getattr(runner.buffers, name).fill_(77)


def main() -> None:
    from sglang.srt.model_executor.runner import decode_cuda_graph_runner
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner
    from sglang.srt.model_executor.runner_utils.buffers import DecodeInputBuffers

    from enginepool.engines.sglang.gpu import lazy_decode_graphs

    captured: list[list[int]] = []
    written: set[int] = set()
    lengths: set[int] = set()

    def make(runner: Any, model_runner: object) -> None:
        runner.model_runner = model_runner
        runner.capture_bs, runner.max_bs, runner.seq_len_fill_value = list(SIZES), SIZES[-1], 1
        runner.enable_torch_compile = runner.enable_profile_cuda_graph = runner.enable_pdmux = False
        runner.backend = SimpleNamespace(capture_session=lambda stream: nullcontext())
        runner.buffers = DecodeInputBuffers.create(
            device=torch.device("cpu"),
            max_bs=SIZES[-1],
            max_num_token=SIZES[-1],
            hidden_size=1,
            next_token_logits_buffer=torch.zeros((SIZES[-1], 1)),
            dtype=torch.float32,
            dp_size=1,
            pp_size=1,
            is_encoder_decoder=False,
            require_mlp_tp_gather=False,
            seq_len_fill_value=1,
            encoder_len_fill_value=0,
            num_tokens_per_req=1,
            cache_loc_dtype=torch.int64,
            enable_mamba_track=False,
        )
        runner.capture()

    def capture(runner: Any) -> None:
        if broken:
            raise RuntimeError("no memory")
        captured.append(list(runner.capture_bs))
        written.update(runner.buffers.out_cache_loc.tolist(), runner.buffers.req_pool_indices.tolist())
        lengths.update(runner.buffers.seq_lens.tolist())
        fill_buffers(runner)

    def told() -> list[list[int]]:
        taken = list(captured)
        captured.clear()
        return taken

    broken = False
    DecodeCudaGraphRunner.__init__ = make
    DecodeCudaGraphRunner._capture_one_stream = capture
    decode_cuda_graph_runner.graph_capture = lambda: nullcontext(SimpleNamespace(stream=None))
    DecodeCudaGraphRunner.can_run_graph = lambda runner, forward_batch: forward_batch.batch_size <= runner.max_bs
    torch.cuda.synchronize = lambda device=None: None
    arguments = SimpleNamespace(enable_cudagraph_gc=True)
    graphs = lazy_decode_graphs.LazyDecodeGraphs(SimpleNamespace(device="cpu", server_args=arguments))
    fill_buffers(graphs)
    scheduler = SimpleNamespace(
        tp_worker=SimpleNamespace(model_runner=SimpleNamespace(decode_cuda_graph_runner=graphs)),
        is_disable_overlap_for_batch=lambda batch, last_batch: False,
    )
    lazy_decode_graphs.install(scheduler)
    sent_first = {}
    for results, waiting in (("nothing", []), ("a first token", [object()])):
        scheduler.result_queue = waiting
        sent_first[results] = scheduler.is_disable_overlap_for_batch(batch(3), last_batch=None)
    at_first = told()
    asked = {"nobody": None, "prefill of 2": batch(2, decode=False), "decode of 3": batch(3), "decode of 9": batch(9)}
    lacks = {name: graphs.lacks(it) for name, it in asked.items()}
    assert graphs.can_run_graph(step(3))
    assert not graphs.can_run_graph(step(9))
    for_three = told()
    lacks["decode of 4, afterwards"] = graphs.lacks(batch(4))
    assert graphs.can_run_graph(step(4))
    for_four = told()
    broken = True
    try:
        lazy_decode_graphs.capture_next(scheduler)
    except RuntimeError:
        after_failure = list(graphs.missing)
    broken = False
    while lazy_decode_graphs.capture_next(scheduler):
        pass
    idle = told()
    sizes, wrote, long = list(graphs.capture_bs), sorted(written), sorted(lengths)
    report = Report(at_first, for_three, for_four, idle, after_failure, sizes, lacks, wrote, long, sent_first)
    print(json.dumps(asdict(report)))
