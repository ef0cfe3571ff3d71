"""The `engine_args` that each engine accepts."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from config.fields import Bytes, Count, Delay, Word
from config.registry import EngineName

Share = Annotated[float, Meta(gt=0, lt=1, description="a share between 0 and 1")]

_SGLANG: dict[str, Any] = {
    "attention_backend": Word,
    "chat_template": Word,
    "chunked_prefill_size": Count,
    "context_length": Count,
    "disable_prefill_cuda_graph": bool,
    "disable_radix_cache": bool,
    "grammar_backend": Literal["xgrammar", "outlines", "llguidance", "none"],
    "is_embedding": bool,
    "kv_cache_dtype": Word,
    "max_prefill_tokens": Count,
    "max_running_requests": Count,
    "max_total_tokens": Count,
    "mem_fraction_static": Share,
    "quantization": Word,
    "reasoning_parser": Word,
    "tool_call_parser": Word,
    "triton_attention_num_kv_splits": Count,
}
"""The SGLang server arguments that may be set per model; Prism sets all others."""

POOL_ARGUMENTS: dict[EngineName, dict[str, Any]] = {
    "transformers": {},
    "sglang": {},
    "simulated": {
        "ttft": Delay,
        "tpot": Delay,
        "activation": Delay,
        "held_blank": Bytes,
        "held_active": Bytes,
        "held_parked": Bytes,
        "kv_per_token": Bytes,
        "limit_delay": Delay,
        "faulty": Word,
    },
}
"""Names and types allowed in `pool.engine_args`, by engine."""

MODEL_ARGUMENTS: dict[EngineName, dict[str, Any]] = {
    "transformers": {},
    "sglang": _SGLANG,
    "simulated": {"weights": Bytes},
}
"""Names and types allowed in a model's `engine_args`, by engine."""
