"""What Prism adapts of SGLang, kvcached and torch_memory_saver on a GPU, beside `upstream`.

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
"""What kvcached warns of while a KV limit falls or memory is short: both are Prism's own doing, and it sees to both."""
_WEIGHTS = "weights"
"""SGLang's GPU_MEMORY_TYPE_WEIGHTS."""


def check_kvcached() -> None:
    """
    Raises:
        EngineError: kvcached is missing, or of a version that was not tested, or did not patch SGLang.
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
    """Once per process, after SGLang's imports."""
    from sglang.srt.layers.moe.moe_runner.triton_utils import fused_moe
    from sglang.srt.model_executor.runner import decode_cuda_graph_runner

    from enginepool.engines.sglang.gpu import lazy_decode_graphs, lazy_prefill_graphs

    decode_cuda_graph_runner.tqdm = SimpleNamespace(tqdm=lazy_decode_graphs.SilentProgress)
    # It would unfreeze what the template froze, and walk all of it twice: a second for each model.
    decode_cuda_graph_runner.freeze_gc = lambda enabled: contextlib.nullcontext()
    lazy_decode_graphs.adapt()
    lazy_prefill_graphs.adapt()
    library_logs.take_over("kvcached", _SCARCITY)
    # For up to 32 tokens it would take a sum that is meant for torch.compile, which `upstream` switches off.
    fused_moe._use_moe_sum_reduce_torch_compile = lambda tokens: False


def identify_compilers() -> None:
    """What Triton 3.6 does at a process's first kernel, and remembers: a digest of all of itself, half a second."""
    from triton.backends.nvidia.compiler import get_ptxas_version
    from triton.runtime.cache import triton_key

    triton_key()
    major, minor = torch.cuda.get_device_capability()
    get_ptxas_version(10 * major + minor)


def name_this_rank(name: str) -> None:
    """kvcached's name for this process's files in /dev/shm; it chose one when the template imported it."""
    os.environ["KVCACHED_IPC_NAME"] = name
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("kvcached") and hasattr(module, "DEFAULT_IPC_NAME"):
            module.DEFAULT_IPC_NAME = name  # type: ignore[attr-defined]


def allocate_weights(nbytes: int) -> Tensor:
    """Memory (uint8) that `pause_weights` takes away: as if SGLang allocated it for its model."""
    with _saver().region(tag=_WEIGHTS):
        return torch.empty(nbytes, dtype=torch.uint8, device="cuda")


def pause_weights() -> None:
    """Give their physical memory back; addresses, and so CUDA graphs, stay valid."""
    _saver().pause(_WEIGHTS)


def resume_weights() -> None:
    """Memory again at the same addresses, with whatever is in it."""
    _saver().resume(_WEIGHTS)


def forget_gpu_memory() -> None:
    """Drop what SGLang, kvcached and torch keep of a model on the GPU after `upstream.forget_model`.

    Each line stands for memory that was seen to stay: SGLang's caches of input buffers and of logits, the graphs' pool
    in NCCL's eyes, the saver's pool of parked blocks, and cuBLAS's workspaces of streams that are gone.
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
