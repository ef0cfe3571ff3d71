"""Rotary embeddings' tables are computed and not loaded, and a GPU's cosines differ from a CPU's in their last digits.

SGLang 0.5.17 computes them where it serves. A first load makes the model on the CPU, so they are computed again:
else greedy answers would in time differ from SGLang's own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


def compute_tables(model: nn.Module, device: torch.device) -> None:
    """Fill the tables of all rotary embeddings in `model` with what `device` makes of them.

    Left as they are: tables in several parts (Phi-3's long and short ones), whose methods take arguments.
    """
    part: Any
    for part in model.modules():
        compute = getattr(part, "_compute_cos_sin_cache", None)
        if compute is not None and not inspect.signature(compute).parameters:
            table = part.get_buffer("cos_sin_cache")
            with device:
                part.register_buffer("cos_sin_cache", compute(), persistent=False)
                part._ensure_cos_sin_cache_length(len(table) - 1)  # as it was lengthened after loading
            table.copy_(part.get_buffer("cos_sin_cache"))
            part.register_buffer("cos_sin_cache", table, persistent=False)
