"""The models of the evaluation as config.json files, with the sizes of published models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.shapes import SHAPES


def _like(base: str, hidden: int, inner: int, layers: int, heads: int, *, tied: bool) -> dict[str, Any]:
    """The shape of another model in `base`'s family."""
    return {
        **SHAPES[base],
        "head_dim": 128,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    }


SIZES: Mapping[str, Mapping[str, Any]] = {
    "llama-1b": SHAPES["llama-1b"],
    "qwen3-1.7b": _like("qwen3-0.6b", 2048, 6144, 28, 16, tied=True),
    "llama-3b": SHAPES["llama-3b"],
    "qwen3-4b": _like("qwen3-0.6b", 2560, 9728, 36, 32, tied=True),
    "llama-8b": SHAPES["llama-8b"],
    "qwen3-14b": _like("qwen3-0.6b", 5120, 17408, 40, 40, tied=False),
    "mistral-24b": _like("llama-8b", 5120, 32768, 40, 32, tied=False) | {"vocab_size": 131072},
    "qwen3-32b": _like("qwen3-0.6b", 5120, 25600, 64, 64, tied=False),
    "llama-70b": _like("llama-8b", 8192, 28672, 80, 64, tied=False),
}


def write_sizes(folder: Path) -> None:
    """Write all shapes as NAME.json. Raises: OSError."""
    for name, config in SIZES.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
