"""A model's size according to its config.json: parameters, bytes of weights, KV cache per token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import ShapeError

DENSE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
EXPERTS = ("MixtralForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM")
_DTYPES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model, in bytes unless the name says otherwise."""

    weight_bytes: int
    active_parameters: int
    """Number of parameters used for one token."""
    shared_bytes: int
    """Bytes of weights that every decode step reads in full. Excludes the experts, and an input embedding that is not
    tied to the output, of which a step reads only one row per request."""
    expert_bytes: int
    experts: int
    experts_per_token: int
    kv_bytes: int
    """Bytes of KV cache per token."""
    layers: int
    attention_flops: int
    """Floating-point operations per pair of a prompt token and an earlier token."""

    def bytes_read(self, batch: int) -> float:
        """Expected bytes of weights read by a decode step of `batch` requests, if each picks its experts at random."""
        if not self.experts:
            return self.shared_bytes
        missed = (1 - self.experts_per_token / self.experts) ** batch
        return self.shared_bytes + self.expert_bytes * (1 - missed)


def read_shape(path: Path) -> Shape:
    """Read the shape from a config.json.

    Raises:
        ShapeError: it cannot be read, or its architecture, data type or quantization is not understood.
    """
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ShapeError(f"{path}: cannot be read: {error}") from error
    try:
        return shape_of(config)
    except KeyError as error:
        raise ShapeError(f"{path}: a shape needs {error.args[0]}, which is missing") from error
    except (ShapeError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ShapeError(f"{path}: the shape is not understood: {error}") from error


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape in a parsed config.json. Raises: ShapeError; KeyError, naming the missing field."""
    architecture = next(iter(config.get("architectures") or ()), "none")
    if architecture not in DENSE + EXPERTS:
        raise ShapeError(f"its architecture is {architecture}; known are {', '.join(DENSE + EXPERTS)}")
    layers, hidden = config["num_hidden_layers"], config["hidden_size"]
    heads = config["num_attention_heads"]
    if min(layers, hidden, heads) < 1:
        raise ShapeError(f"it has {layers} layers, {heads} heads and a hidden size of {hidden}")
    head_dim = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    width, linear_width = _widths(config)
    attention = 2 * hidden * head_dim * (heads + kv_heads)
    sparse = _sparse_layers(config, architecture)
    experts, chosen, expert = _experts(config, architecture) if sparse else (0, 0, 0)
    router = hidden * experts + 3 * hidden * config.get("shared_expert_intermediate_size", 0) * bool(experts)
    dense_mlp = 3 * hidden * config["intermediate_size"] if sparse < layers else 0
    shared = layers * attention + (layers - sparse) * dense_mlp + sparse * router
    embedding = config["vocab_size"] * hidden
    input_bytes = 0 if config.get("tie_word_embeddings") else embedding * width
    shared_bytes = shared * linear_width + embedding * width
    expert_bytes = sparse * experts * expert * linear_width
    return Shape(
        weight_bytes=input_bytes + shared_bytes + expert_bytes,
        active_parameters=shared + embedding + sparse * chosen * expert,
        shared_bytes=shared_bytes,
        expert_bytes=expert_bytes,
        experts=experts,
        experts_per_token=chosen,
        kv_bytes=2 * layers * kv_heads * head_dim * width,
        layers=layers,
        attention_flops=4 * layers * heads * head_dim,
    )


def _widths(config: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes per number in embeddings and KV cache, and in linear layers. Raises: ShapeError."""
    dtype = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    if dtype not in _DTYPES:
        raise ShapeError(f"its data type is {dtype}; known are {', '.join(_DTYPES)}")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method not in (None, "fp8"):
        raise ShapeError(f"it is quantized by {method}; known is fp8")
    return _DTYPES[dtype], 1 if method else _DTYPES[dtype]


def _sparse_layers(config: Mapping[str, Any], architecture: str) -> int:
    """Number of layers with experts."""
    layers = int(config["num_hidden_layers"])
    if architecture in DENSE:
        return 0
    step, dense = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or ()
    return sum(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


def _experts(config: Mapping[str, Any], architecture: str) -> tuple[int, int, int]:
    """Number of experts per layer, number of experts per token, and parameters per expert."""
    mixtral = architecture == "MixtralForCausalLM"
    experts = config["num_local_experts" if mixtral else "num_experts"]
    inner = config["intermediate_size" if mixtral else "moe_intermediate_size"]
    return experts, config["num_experts_per_tok"], 3 * config["hidden_size"] * inner
