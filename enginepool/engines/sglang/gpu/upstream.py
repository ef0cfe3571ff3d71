"""Adapts SGLang, kvcached and torch_memory_saver on a GPU, in addition to `upstream`.

Tested with SGLang 0.5.17, kvcached 0.1.6 and torch_memory_saver 0.0.10.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from config.errors import EngineError
from enginepool import tested
from enginepool.host import library_logs

TESTED_KVCACHED = tested.KVCACHED
_SCARCITY = ("shrink to", "available_size()=", "alloc_page() failed", "Failed to reserve blocks")
"""kvcached's warnings while a KV limit falls or memory is short, both of which Prism causes and handles itself."""
_WEIGHTS = "weights"
"""SGLang's GPU_MEMORY_TYPE_WEIGHTS."""


def check_kvcached() -> None:
    """Check that kvcached is usable.

    Raises:
        EngineError: kvcached is missing, of an untested version, or did not patch SGLang.
    """
    try:
        version = importlib.metadata.version("kvcached")
    except importlib.metadata.PackageNotFoundError as error:
        raise EngineError("the engine sglang needs the package kvcached on a GPU, which is not installed") from error
    if version not in TESTED_KVCACHED:
        raise EngineError(f"the engine sglang needs kvcached {' or '.join(TESTED_KVCACHED)}; {version} is installed")
    from sglang.srt.mem_cache import allocator

    if not allocator.TokenToKVPoolAllocator.__name__.startswith("Elastic"):
        raise EngineError("kvcached has not patched SGLang; is its kvcached_autopatch.pth in site-packages?")


def adapt() -> None:
    """Apply the adaptations. Once per process, after SGLang was imported."""
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
    from sglang.srt.model_executor.runner import decode_cuda_graph_runner

    from enginepool.engines.sglang.gpu import lazy_decode_graphs, lazy_prefill_graphs

    decode_cuda_graph_runner.tqdm = SimpleNamespace(tqdm=lazy_decode_graphs.SilentProgress)
    # SGLang would unfreeze the objects that the template froze and collect garbage twice: one second per model.
    decode_cuda_graph_runner.freeze_gc = lambda enabled: contextlib.nullcontext()
    lazy_decode_graphs.adapt()
    lazy_prefill_graphs.adapt()
    library_logs.take_over("kvcached", _SCARCITY)
    # For up to 32 tokens, SGLang would use a sum written for torch.compile, which `upstream` disables.
    fused_moe._use_moe_sum_reduce_torch_compile = lambda tokens: False


def identify_compilers() -> None:
    """Make Triton 3.6 compute and cache its own digest, which takes half a second at a process's first kernel."""
    from triton.backends.nvidia.compiler import get_ptxas_version
    from triton.runtime.cache import triton_key

    triton_key()
    major, minor = torch.cuda.get_device_capability()
    get_ptxas_version(10 * major + minor)


def name_this_rank(name: str) -> None:
    """Set kvcached's name for this process's files in /dev/shm, which was fixed when the template imported it."""
    os.environ["KVCACHED_IPC_NAME"] = name
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("kvcached") and hasattr(module, "DEFAULT_IPC_NAME"):
            module.DEFAULT_IPC_NAME = name  # type: ignore[attr-defined]


def allocate_weights(nbytes: int) -> Tensor:
    """Allocate memory (uint8) that `pause_weights` can release, as SGLang does for its weights."""
    with _saver().region(tag=_WEIGHTS):
        return torch.empty(nbytes, dtype=torch.uint8, device="cuda")


def pause_weights() -> None:
    """Release the weights' physical memory; addresses, and so CUDA graphs, stay valid."""
    _saver().pause(_WEIGHTS)


def resume_weights() -> None:
    """Map uninitialised memory at the same addresses again."""
    _saver().resume(_WEIGHTS)


def forget_gpu_memory() -> None:
    """Release the GPU memory that SGLang, kvcached and torch still cache for a model after `upstream.forget_model`.

    Each line releases memory that was observed to stay: SGLang's caches of input buffers and logits, the graph pool
    known to NCCL, the saver's pool of paused blocks, and cuBLAS workspaces of dead streams.
    """
    from kvcached.integration.sglang import interfaces
    from sglang.srt.distributed.device_communicators import pynccl_allocator
    from sglang.srt.model_executor import input_buffers
    from sglang.srt.model_executor.graph_shared_output import GraphSharedOutput

    interfaces.shutdown_kvcached()
    input_buffers._forward_input_buffer_pool.clear()
    GraphSharedOutput._process_shared = None
    pynccl_allocator.set_graph_pool_id(None)
    gc.collect()
    implementation = _saver()._impl
    if implementation is not None:
        implementation._mem_pools.clear()
    cuda: Any = torch._C
    cuda._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def _saver() -> Any:
    from torch_memory_saver import torch_memory_saver

    return torch_memory_saver
