"""What transformers is told of a model's folder, and what it raises over one."""

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
"""What transformers raises for a folder that it cannot make a model of."""


def torch_dtype(model: ModelSpec) -> str | torch.dtype:
    """`model.dtype` as from_pretrained takes it."""
    if model.dtype == "auto":
        return "auto"
    dtype: torch.dtype = getattr(torch, model.dtype)
    return dtype
