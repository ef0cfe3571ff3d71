"""The arguments that a model is served with: SGLang's defaults, what Prism relies on, and the registry's wishes."""

from __future__ import annotations

from typing import Any

from config.errors import EngineError, describe
from enginepool.messages import ModelSpec

PREFILL_GRAPHS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024)
"""Tokens of a prefill step with a CUDA graph each; SGLang pads a step to the next, at most to twice its tokens. Above
1,024 the kernels of all but the smallest models take longer to run than to launch."""
_MOST_TOKENS = 2**20
"""Of a KV pool: SGLang makes buffers of some 50 bytes a token."""


def server_args(model: ModelSpec, max_running: int, kv_bytes: int, device: str = "cpu") -> Any:
    """ServerArgs for `model` on `device` (cpu, cuda:0), with a KV pool of at most `kv_bytes` bytes.

    Raises:
        EngineError: SGLang takes neither this model nor these arguments.
    """
    from sglang.srt.server_args import ServerArgs

    defaults = _on_cpu() if device == "cpu" else _on_gpu(max_running)
    try:
        chosen = {**defaults, "max_running_requests": max_running, **model.engine_args, **_always(model)}
        arguments = ServerArgs(**chosen)
        if arguments.max_total_tokens is None:
            arguments.override("prism", max_total_tokens=_pool_tokens(arguments, kv_bytes))
    except Exception as error:  # SGLang's checks and transformers' raise whatever they like
        raise EngineError(f"{model.name}: SGLang cannot serve {model.path}: {describe(error)}") from error
    return arguments


def attention_backend(device: str) -> str:
    """SGLang's name of the one that is used unless the registry says otherwise."""
    return "torch_native" if device == "cpu" else "triton"


def _on_cpu() -> dict[str, Any]:
    return {
        "device": "cpu",
        "attention_backend": attention_backend("cpu"),
        "disable_cuda_graph": True,
        "grammar_backend": "llguidance",
        "mem_fraction_static": 0.2,
    }


def _on_gpu(max_running: int) -> dict[str, Any]:
    return {
        "device": "cuda",
        "attention_backend": attention_backend("cuda"),
        "sampling_backend": "pytorch",
        "grammar_backend": "llguidance",
        "mem_fraction_static": 0.85,
        "cuda_graph_bs_decode": graph_sizes(max_running),
        "cuda_graph_bs_prefill": list(PREFILL_GRAPHS),
        "enable_memory_saver": True,
    }


def graph_sizes(max_running: int) -> list[int]:
    """Batch sizes with a decode graph each: powers of two up to 8, then every eighth, and the largest."""
    sizes = {size for size in (1, 2, 4, *range(8, max_running, 8)) if size < max_running}
    return sorted(sizes | {max_running})


def _always(model: ModelSpec) -> dict[str, Any]:
    """What the engine relies on; no registry may change it."""
    return {
        "model_path": model.path,
        "served_model_name": model.name,
        "dtype": model.dtype,
        "trust_remote_code": False,
        "sleep_on_idle": True,
        "enable_priority_scheduling": True,
        "schedule_low_priority_values_first": True,
        "disable_priority_preemption": True,
        "random_seed": 0,
        "log_level": "error",
        "nccl_port": 1,  # not used: the process group meets in a file
    }


def _pool_tokens(arguments: Any, kv_bytes: int) -> int:
    """Tokens that fit into the KV budget."""
    config = arguments.get_model_config()
    per_token = config.num_hidden_layers * _elements_per_layer(config, arguments.tp_size) * config.dtype.itemsize
    return int(max(256, min(kv_bytes // per_token, 64 * config.context_len, _MOST_TOKENS)))


def _elements_per_layer(config: Any, tp_size: int) -> int:
    """Of one token: keys and values, or what multi-head latent attention keeps in their place."""
    from sglang.srt.configs.model_config import AttentionArch

    if config.attention_arch == AttentionArch.MLA:
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    return int(2 * config.get_num_kv_heads(tp_size) * config.head_dim)
