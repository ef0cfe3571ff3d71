"""A model's files on disk: config.json, weights and tokenizer."""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from config.errors import ShapeError
from config.registry import ModelConfig
from config.shape import shape_of

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""Patterns of weight files, the preferred format first."""
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""The index files that map tensors to weight files, in the order of `WEIGHTS`."""
_NOT_A_SHAPE = (ValueError, KeyError, TypeError, ZeroDivisionError, AttributeError)
"""What reading sizes from an invalid config.json can raise."""
_TOKENIZER = ("tokenizer*", "tokenization_*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


SMALLEST_VOCABULARY = 259
"""Tokens that a vocabulary needs for a made-up tokenizer: one per byte, and three chat markers."""


def config_file(model: ModelConfig) -> Path | None:
    """The model's config.json; None if the registry names neither path nor shape."""
    if model.path is not None:
        return model.path / "config.json"
    return None if model.shape is None else shape_file(model.shape)


def shape_file(shape: Path) -> Path:
    """The config.json that `shape` names, directly or by its folder."""
    return shape / "config.json" if shape.is_dir() else shape


def weight_bytes(model: ModelConfig) -> int:
    """Bytes of the model's safetensors or dummy weights; 0 if the size is unknown before loading."""
    if model.weights == "dummy":
        return _dummy_bytes(model)
    if model.path is None:
        return 0
    try:
        return sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    except OSError:
        return 0


def _dummy_bytes(model: ModelConfig) -> int:
    try:
        config = _content(model)
        own = {} if model.dtype == "auto" else {"torch_dtype": model.dtype}
        return shape_of({**config, **own}).weight_bytes
    except (OSError, ShapeError, *_NOT_A_SHAPE):
        return 0


def _content(model: ModelConfig) -> Any:
    """The parsed config.json; an empty mapping if there is none. Raises: OSError, ValueError."""
    file = config_file(model)
    return json.loads(file.read_bytes()) if file else {}


def kv_bytes_per_token(model: ModelConfig) -> int:
    """Bytes of KV cache per token at two bytes a number, from config.json; 0 if that does not tell."""
    try:
        config = _content(model)
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return int(4 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head_dim)
    except (OSError, *_NOT_A_SHAPE):
        return 0


def fault_of_folder(folder: Path) -> str:
    """Why `folder` is not a folder; empty if it is one."""
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        return f"{folder} ({error.strerror})"
    return "" if stat.S_ISDIR(mode) else f"{folder} (not a folder)"


def fault_of_config(file: Path) -> str:
    """Why `file` is not a model's config.json; empty if it is one."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        return f"{file} ({error.strerror})"
    except (ValueError, RecursionError) as error:
        return f"{file} ({error})"
    return "" if isinstance(content, dict) else f"{file} (not a JSON object)"


def fault_of_weights(folder: Path) -> str:
    """Which weight files `folder` lacks, such as one that was not downloaded; empty if none."""
    for pattern, index in zip(WEIGHTS, _INDEX, strict=True):
        there = {file.name for file in folder.glob(pattern)}
        if there:
            missing = sorted(_indexed(folder / index) - there)
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return f"{folder} without {missing[0]}{more}, which {index} names" if missing else ""
    return f"{folder} without {' or '.join(WEIGHTS)}"


def _indexed(index: Path) -> set[str]:
    """Names of the files in an index; none if it is missing or unreadable, which the loader will report."""
    try:
        return {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` has tokenizer files."""
    return any(next(folder.glob(pattern), None) for pattern in _TOKENIZER)


def fault_of_tokenizer(folder: Path) -> str:
    """Why `folder` has no tokenizer; empty if it has one."""
    return "" if has_tokenizer(folder) else f"{folder} without tokenizer.json or the like"


def fault_of_vocabulary(model: ModelConfig) -> str:
    """Why the model has no tokenizer and none can be made up; empty if it has one or one can be made up.

    Also empty if its config.json cannot be read, which `fault_of_config` reports.
    """
    file = config_file(model)
    if file is None or tokenizer_folder(model) or fault_of_config(file):
        return ""
    size = vocabulary(json.loads(file.read_bytes()))
    if size is None:
        return f"{file} without vocab_size"
    return "" if size >= SMALLEST_VOCABULARY else f"{file} with vocab_size {size}"


def tokenizer_folder(model: ModelConfig) -> Path | None:
    """The folder with the model's config.json and tokenizer; None if there is no tokenizer."""
    folder = model.path or model.shape
    return folder if folder is not None and has_tokenizer(folder) else None


def vocabulary(config: Mapping[str, Any]) -> int | None:
    """Vocabulary size in a config.json, for a multimodal model that of its language model; None if not stated."""
    for part in (config, config.get("text_config")):
        size = part.get("vocab_size") if isinstance(part, Mapping) else None
        if isinstance(size, int):
            return size
    return None
