"""SGLang's server arguments for a model: defaults, the registry's `engine_args`, and values that Prism relies on."""

from __future__ import annotations

from typing import Any

from config.errors import EngineError, describe
from enginepool.messages import ModelSpec

PREFILL_GRAPHS = (16, 32, 64, 128, 192, 256, 384, 512, 768, 1024)
"""Sizes in tokens of prefill steps with a CUDA graph; SGLang pads a step to the next size, at most to twice its tokens.
Above 1,024 tokens, kernels of all but the smallest models take longer to run than to launch."""
_MOST_TOKENS = 2**20
"""Maximum tokens of a KV pool, because SGLang allocates buffers of some 50 bytes per token."""


def server_args(model: ModelSpec, max_running: int, kv_bytes: int, device: str = "cpu") -> Any:
    """SGLang's ServerArgs for `model` on `device` (cpu, cuda:0), with a KV pool of at most `kv_bytes` bytes.

    Raises:
        EngineError: SGLang rejects the model or the arguments.
    """
    from sglang.srt.server_args import ServerArgs

    defaults = _on_cpu() if device == "cpu" else _on_gpu(max_running)
    try:
        chosen = {**defaults, "max_running_requests": max_running, **model.engine_args, **_always(model)}
        arguments = ServerArgs(**chosen)
        if arguments.max_total_tokens is None:
            arguments.override("prism", max_total_tokens=_pool_tokens(arguments, kv_bytes))
    except Exception as error:  # SGLang and transformers raise errors of any kind
        raise EngineError(f"{model.name}: SGLang cannot serve {model.path}: {describe(error)}") from error
    return arguments


def attention_backend(device: str) -> str:
    """The default attention backend for a device, by SGLang's name."""
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
    """Batch sizes with a decode graph: powers of two up to 8, then multiples of 8, and `max_running`."""
    sizes = {size for size in (1, 2, 4, *range(8, max_running, 8)) if size < max_running}
    return sorted(sizes | {max_running})


def _always(model: ModelSpec) -> dict[str, Any]:
    """Arguments that the engine relies on and that the registry cannot change."""
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
        "nccl_port": 1,  # unused: the process group has its rendezvous in a file
    }


def _pool_tokens(arguments: Any, kv_bytes: int) -> int:
    """Tokens that fit into `kv_bytes`, within limits."""
    config = arguments.get_model_config()
    per_token = config.num_hidden_layers * _elements_per_layer(config, arguments.tp_size) * config.dtype.itemsize
    return int(max(256, min(kv_bytes // per_token, 64 * config.context_len, _MOST_TOKENS)))


def _elements_per_layer(config: Any, tp_size: int) -> int:
    """Elements per token and layer: keys and values, or the latent vectors of multi-head latent attention."""
    from sglang.srt.configs.model_config import AttentionArch

    if config.attention_arch == AttentionArch.MLA:
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    return int(2 * config.get_num_kv_heads(tp_size) * config.head_dim)
