"""Recomputes rotary embedding tables on the GPU, whose cosines differ from the CPU's in their last digits.

SGLang 0.5.17 computes these tables on the serving device. A first load builds the model on the CPU, so they have to be
computed again; otherwise greedy answers would eventually differ from SGLang's.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


def compute_tables(model: nn.Module, device: torch.device) -> None:
    """Recompute the tables of all rotary embeddings in `model` on `device`.

    Tables in several parts (Phi-3's long and short ones), whose methods take arguments, are left as they are.
    """
    part: Any
    for part in model.modules():
        compute = getattr(part, "_compute_cos_sin_cache", None)
        if compute is not None and not inspect.signature(compute).parameters:
            table = part.get_buffer("cos_sin_cache")
            with device:
                part.register_buffer("cos_sin_cache", compute(), persistent=False)
                part._ensure_cos_sin_cache_length(len(table) - 1)  # it was extended after loading
            table.copy_(part.get_buffer("cos_sin_cache"))
            part.register_buffer("cos_sin_cache", table, persistent=False)
