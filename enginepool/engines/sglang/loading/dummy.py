"""Dummy weights for SGLang's module, in the place of `load_weights`.

As SGLang 0.5.15.post1's own `DummyModelLoader` does it: numbers for the parameters, then what `load_weights` does at
its end. Its numbers would not do: within 0.001 of zero, and the same for every tensor of a size.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.model_loader.loader import _post_load_weights
from torch import nn

from enginepool.messages import ModelSpec
from enginepool.weights.dummy import fill


def invent_weights(module: nn.Module, model: ModelSpec, model_config: Any) -> None:
    """
    Raises:
        StoreError: a parameter is of a type that a number's meaning cannot be guessed of.
    """
    fill(module, model.name, model_config.hidden_size)
    _post_load_weights(module)
