"""Dummy weights for SGLang's module, instead of `load_weights`.

Follows `DummyModelLoader` of SGLang 0.5.15.post1: random numbers for the parameters, then the final part of
`load_weights`. SGLang's own numbers are unsuitable: within 0.001 of zero, and equal for all tensors of the same size.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.model_loader.loader import _post_load_weights
from torch import nn

from enginepool.messages import ModelSpec
from enginepool.weights.dummy import fill


def invent_weights(module: nn.Module, model: ModelSpec, model_config: Any) -> None:
    """Fill the module's parameters with dummy weights.

    Raises:
        StoreError: a parameter is not of a floating-point type.
    """
    fill(module, model.name, model_config.hidden_size)
    _post_load_weights(module)
