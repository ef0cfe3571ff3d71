"""What a model has on disk."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from config.registry import Model

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
"""The files with a model's weights, the form that is read first before the older one."""
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Which file each tensor is in, of weights in several, in the order of `WEIGHTS`."""
_TOKENIZER = ("tokenizer*", "tokenization_*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


def weight_bytes(model: Model) -> int:
    """Bytes of the model's safetensors; 0 where there are none to read."""
    if model.path is None:
        return 0
    try:
        return sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    except OSError:
        return 0


def kv_bytes_per_token(model: Model) -> int:
    """Bytes of KV cache per token, as its config.json has it, at two bytes a number; 0 where that does not say."""
    file = model.shape or (model.path / "config.json" if model.path else None)
    try:
        config = json.loads(file.read_bytes()) if file else {}
        heads = config["num_attention_heads"]
        head_dim = config.get("head_dim") or config["hidden_size"] // heads
        return int(4 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * head_dim)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError, AttributeError):
        return 0


def fault_of_folder(folder: Path) -> str:
    """Why `folder` is not one; empty if it is."""
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
    """What `folder` lacks of a model's weights, such as a file that was not downloaded; empty if nothing."""
    for pattern, index in zip(WEIGHTS, _INDEX, strict=True):
        there = {file.name for file in folder.glob(pattern)}
        if there:
            missing = sorted(_indexed(folder / index) - there)
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            return f"{folder} without {missing[0]}{more}, which {index} names" if missing else ""
    return f"{folder} without {' or '.join(WEIGHTS)}"


def _indexed(index: Path) -> set[str]:
    """Names of files; none where there is no index, or none that can be read, which is for who loads it to say."""
    try:
        return {str(name) for name in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def fault_of_tokenizer(folder: Path) -> str:
    """Empty if `folder` has something that a tokenizer is made of."""
    there = any(next(folder.glob(pattern), None) for pattern in _TOKENIZER)
    return "" if there else f"{folder} without tokenizer.json or the like"
