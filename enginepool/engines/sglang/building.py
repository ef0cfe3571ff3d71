"""Builds SGLang's model object without SGLang's loader, for the first load and for activations from the weight store.

Written for SGLang 0.5.17. To be imported after `warm` has run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.distributed import parallel_state
from sglang.srt.layers.dp_attention import initialize_dp_attention
from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.model_loader import loader
from sglang.srt.server_args import set_global_server_args_for_scheduler
from torch import nn

from enginepool.engines.sglang import upstream


def initialise(model_config: Any, load_config: Any, device: torch.device) -> nn.Module:
    """Build the model with all its modules; its tensors are uninitialised."""
    upstream.forget_rotary_embeddings()
    quant_config = loader._get_quantization_config(model_config, load_config)
    with default_dtype(model_config.dtype), device:
        model: nn.Module = loader._initialize_model(model_config, load_config, quant_config)
    return model


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Like SGLang's `set_default_torch_dtype`, but restores the previous dtype after errors too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def as_only_rank(server_args: Any, model_config: Any) -> Iterator[None]:
    """Set up what a Scheduler sets up before it builds a model, for a group of one rank, and undo it at the end."""
    try:
        set_global_server_args_for_scheduler(server_args)
        Scheduler.init_moe_gemm_config(SimpleNamespace(server_args=server_args, model_config=model_config))
        with tempfile.TemporaryDirectory(prefix="prism-load-") as folder:
            parallel_state.init_distributed_environment(
                backend="gloo",
                world_size=1,
                rank=0,
                local_rank=0,
                distributed_init_method=f"file://{folder}/group",
            )
            parallel_state.initialize_model_parallel()
            initialize_dp_attention(server_args, model_config)
            yield
    finally:
        upstream.forget_model()
