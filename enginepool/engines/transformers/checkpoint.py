"""How transformers is told to read a model's folder, and the errors it raises for invalid ones."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from enginepool.messages import ModelSpec

FOREIGN_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
    MemoryError,
    SafetensorError,
)
"""What transformers raises for a folder without a usable model."""


def torch_dtype(model: ModelSpec) -> str | torch.dtype:
    """`model.dtype` in the form from_pretrained expects."""
    if model.dtype == "auto":
        return "auto"
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype
