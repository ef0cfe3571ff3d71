"""Checkpoints of a few layers for the tests of SGLang's weights: a mixture of experts, MLA, fp8, and damaged ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

_SHARED: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "tie_word_embeddings": False,
}
_MOE: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 32, "num_experts": 4}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "scoring_func": "softmax",
    "norm_topk_prob": False,
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256, "mscale": 1.0},
}


def make_moe(folder: Path) -> Path:
    return _make(folder, transformers.Qwen3MoeConfig(**_SHARED, **_MOE))


def make_mla(folder: Path) -> Path:
    return _make(folder, transformers.DeepseekV2Config(**_SHARED, **_MLA))


def make_fp8(folder: Path, source: Path) -> Path:
    """The model in `source` with fp8 weights, a scale for each of them and one for their inputs."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    quantization = {"quant_method": "fp8", "activation_scheme": "static"}
    edited = {**config, "dtype": "bfloat16", "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(edited))
    _save(folder, {k: v for name, tensor in _load(folder).items() for k, v in _to_fp8(name, tensor).items()})
    return folder


def without(folder: Path, source: Path, tensor: str) -> Path:
    """The model in `source` but for one tensor."""
    shutil.copytree(source, folder)
    tensors = _load(folder)
    del tensors[tensor]
    _save(folder, tensors)
    return folder


def _make(folder: Path, config: Any) -> Path:
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    return folder


def _to_fp8(name: str, tensor: Tensor) -> dict[str, Tensor]:
    if "proj" not in name:
        return {name: tensor.to(torch.bfloat16)}
    scale = tensor.abs().max() / torch.finfo(torch.float8_e4m3fn).max
    scales = {f"{name}_scale": scale, name.replace("weight", "input_scale"): torch.tensor(0.02)}
    return {name: (tensor / scale).to(torch.float8_e4m3fn), **scales}


def _load(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return tensors


def _save(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
