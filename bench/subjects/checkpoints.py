"""Writes checkpoints of random weights for a config.json, with the same tensor names as published checkpoints."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from simulator.errors import StudyError

SHARD = 4 * 10**9
"""Maximum bytes per weight file."""
STD = 0.05
"""Standard deviation of weights. Narrow models need more, or their flat logits make one token repeat forever."""
STD_NARROW = 0.08
NARROW = 512
"""Hidden size below which a model is narrow."""
FP8_STD = 64.0
"""Standard deviation of fp8 values before scaling; the largest e4m3 value is 448."""

_BYTES = {"bfloat16": 2, "float8_e4m3fn": 1}


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint. `kind` says how to fill it: weight, norm, fp8 or scale."""

    name: str
    shape: tuple[int, ...]
    kind: str = "weight"

    @property
    def dtype(self) -> str:
        return "float8_e4m3fn" if self.kind == "fp8" else "bfloat16"

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _BYTES[self.dtype]


# --- which tensors there are ----------------------------------------------------------------------------------


def tensors_of(config: dict[str, Any]) -> list[Tensor]:
    """All tensors of a checkpoint with this config.json, in the order of layers.

    Raises:
        StudyError: the architecture is not supported.
    """
    layers = {"llama": _dense_layer, "qwen3": _dense_layer, "qwen3_moe": _moe_layer, "deepseek_v2": _mla_layer}
    layer = layers.get(config["model_type"])
    if layer is None:
        raise StudyError(f"no list of tensors for {config['model_type']}; there is one for {', '.join(layers)}")
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    found = [Tensor("model.embed_tokens.weight", (vocabulary, hidden))]
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        found += layer(config, prefix, index)
        found += _norms(prefix, hidden, "input_layernorm", "post_attention_layernorm")
    found += _norms("model", hidden, "norm")
    if not config["tie_word_embeddings"]:
        found.append(Tensor("lm_head.weight", (vocabulary, hidden)))
    return found


def _norms(prefix: str, size: int, *names: str) -> Iterator[Tensor]:
    return (Tensor(f"{prefix}.{name}.weight", (size,), "norm") for name in names)


def _linear(config: dict[str, Any], name: str, outputs: int, inputs: int) -> Iterator[Tensor]:
    """The tensors of a projection; with block-wise fp8, its values and the scales of blocks."""
    quantization = config.get("quantization_config")
    if quantization is None:
        yield Tensor(f"{name}.weight", (outputs, inputs))
        return
    rows, columns = quantization["weight_block_size"]
    yield Tensor(f"{name}.weight", (outputs, inputs), "fp8")
    yield Tensor(f"{name}.weight_scale_inv", (math.ceil(outputs / rows), math.ceil(inputs / columns)), "scale")


def _mlp(config: dict[str, Any], prefix: str, size: int) -> Iterator[Tensor]:
    hidden = config["hidden_size"]
    yield from _linear(config, f"{prefix}.gate_proj", size, hidden)
    yield from _linear(config, f"{prefix}.up_proj", size, hidden)
    yield from _linear(config, f"{prefix}.down_proj", hidden, size)


def _attention(config: dict[str, Any], prefix: str) -> Iterator[Tensor]:
    hidden, size = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    prefix = f"{prefix}.self_attn"
    yield from _linear(config, f"{prefix}.q_proj", heads * size, hidden)
    yield from _linear(config, f"{prefix}.k_proj", kv_heads * size, hidden)
    yield from _linear(config, f"{prefix}.v_proj", kv_heads * size, hidden)
    yield from _linear(config, f"{prefix}.o_proj", hidden, heads * size)
    if config["model_type"].startswith("qwen3"):
        yield from _norms(prefix, size, "q_norm", "k_norm")


def _dense_layer(config: dict[str, Any], prefix: str, index: int) -> Iterator[Tensor]:
    yield from _attention(config, prefix)
    yield from _mlp(config, f"{prefix}.mlp", config["intermediate_size"])


def _moe_layer(config: dict[str, Any], prefix: str, index: int) -> Iterator[Tensor]:
    yield from _attention(config, prefix)
    yield from _experts(config, prefix, config["num_experts"])


def _experts(config: dict[str, Any], prefix: str, number: int) -> Iterator[Tensor]:
    yield Tensor(f"{prefix}.mlp.gate.weight", (number, config["hidden_size"]))
    for expert in range(number):
        yield from _mlp(config, f"{prefix}.mlp.experts.{expert}", config["moe_intermediate_size"])


def _mla_layer(config: dict[str, Any], prefix: str, index: int) -> Iterator[Tensor]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    attention = f"{prefix}.self_attn"
    yield from _linear(config, f"{attention}.q_proj", heads * (nope + rope), hidden)
    yield from _linear(config, f"{attention}.kv_a_proj_with_mqa", rank + rope, hidden)
    yield from _norms(attention, rank, "kv_a_layernorm")
    yield from _linear(config, f"{attention}.kv_b_proj", heads * (nope + value), rank)
    yield from _linear(config, f"{attention}.o_proj", hidden, heads * value)
    if index < config["first_k_dense_replace"]:
        yield from _mlp(config, f"{prefix}.mlp", config["intermediate_size"])
        return
    yield from _experts(config, prefix, config["n_routed_experts"])
    shared = config["moe_intermediate_size"] * config["n_shared_experts"]
    yield from _mlp(config, f"{prefix}.mlp.shared_experts", shared)


# --- writing them ---------------------------------------------------------------------------------------------


def make_checkpoint(folder: Path, config: dict[str, Any], tokenizer: Any, *, seed: int) -> int:
    """Write config.json, tokenizer and weights into `folder`, which only appears when complete; returns its bytes.

    Uses a GPU if there is one; the same seed gives the same weights on the same kind of device.

    Raises:
        OSError: the folder cannot be written.
        StudyError: an architecture that is not known here.
    """
    tensors = tensors_of(config)
    ends = tokenizer.convert_tokens_to_ids([tokenizer.eos_token, tokenizer.pad_token])
    # Without the version, transformers warns about old tokenizers.
    written_by = {"transformers_version": metadata.version("transformers")}
    whole = {**config, **written_by, "bos_token_id": None, "eos_token_id": ends, "pad_token_id": ends[1]}
    unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (unfinished / "config.json").write_text(json.dumps(whole, indent=2) + "\n")
        _save_tokenizer(unfinished, tokenizer, config["vocab_size"])
        _save_weights(unfinished, tensors, STD_NARROW if config["hidden_size"] < NARROW else STD, seed)
        unfinished.chmod(0o755)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sum(tensor.nbytes for tensor in tensors)


def _save_tokenizer(folder: Path, tokenizer: Any, vocabulary: int) -> None:
    """Give every id of the model's vocabulary a text, since random weights generate any of them."""
    tokenizer.save_pretrained(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    known = content["model"]["vocab"]
    known.update({f"Ġ<{number}>": number for number in range(len(known), vocabulary)})
    file.write_text(json.dumps(content, ensure_ascii=False))


def _save_weights(folder: Path, tensors: list[Tensor], std: float, seed: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    shards = _shards(tensors)
    names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else ["model.safetensors"]
    for name, shard in zip(names, shards, strict=True):
        filled = {tensor.name: _fill(tensor, std, generator) for tensor in shard}
        save_file(filled, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors)}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: list[Tensor]) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def _fill(tensor: Tensor, std: float, generator: torch.Generator) -> torch.Tensor:
    device = generator.device
    match tensor.kind:
        case "norm":
            filled = torch.ones(tensor.shape, dtype=torch.bfloat16, device=device)
        case "scale":
            spread = torch.empty(tensor.shape, dtype=torch.float32, device=device)
            filled = spread.uniform_(0.9, 1.1, generator=generator).mul_(std / FP8_STD).to(torch.bfloat16)
        case "fp8":
            values = torch.empty(tensor.shape, dtype=torch.bfloat16, device=device)
            filled = values.normal_(0.0, FP8_STD, generator=generator).clamp_(-448, 448).to(torch.float8_e4m3fn)
        case _:
            values = torch.empty(tensor.shape, dtype=torch.bfloat16, device=device)
            filled = values.normal_(0.0, std, generator=generator)
    return filled.cpu()
