"""Rotary embeddings' tables are computed and not loaded, and a GPU's cosines differ from a CPU's in their last digits.

SGLang 0.5.15.post1 computes them where it serves. A first load makes the model on the CPU, so they are computed again:
else greedy answers would in time differ from SGLang's own.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn


def compute_tables(module: nn.Module, device: torch.device) -> None:
    """Fill the tables of all rotary embeddings in `module` with what `device` makes of them.

    Left as they are: tables in several parts (Phi-3's long and short ones), whose methods take arguments.
    """
    for part in module.modules():
        compute = getattr(part, "_compute_cos_sin_cache", None)
        if compute is not None and not inspect.signature(compute).parameters:
            with device:
                table = compute()
            part.get_buffer("cos_sin_cache").copy_(table)
