"""Finds every tensor of a module, wherever it is stored, and replaces it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from config.errors import EngineError
from enginepool.messages import TensorKind


@dataclass(frozen=True, slots=True)
class TensorSlot:
    """Where one tensor is stored: an entry of a module's parameters, buffers or plain attributes."""

    name: str
    """Dotted path from the root module."""
    holder: dict[str, Any]
    attribute: str
    kind: TensorKind

    @property
    def tensor(self) -> Tensor:
        tensor: Tensor = self.holder[self.attribute]
        return tensor

    def put(self, tensor: Tensor) -> None:
        self.holder[self.attribute] = nn.Parameter(tensor, requires_grad=False) if self.kind == "parameter" else tensor


def slots_of(root: nn.Module) -> Iterator[TensorSlot]:
    """Yields all tensor slots of `root` and its submodules; tied weights appear once per slot.

    Raises:
        EngineError: a module keeps tensors in a list or dict, which is not supported.
    """
    for path, module in root.named_modules():
        prefix = f"{path}." if path else ""
        holders: tuple[tuple[TensorKind, dict[str, Any]], ...] = (
            ("parameter", module._parameters),
            ("buffer", module._buffers),
            ("attribute", vars(module)),
        )
        for kind, holder in holders:
            for attribute, value in holder.items():
                if isinstance(value, Tensor):
                    yield TensorSlot(prefix + attribute, holder, attribute, kind)
                elif kind == "attribute" and not attribute.startswith("_") and _holds_tensors(value):
                    raise EngineError(f"{prefix}{attribute} is a {type(value).__name__} of tensors: not supported")


def _holds_tensors(value: object) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return any(isinstance(item, Tensor) for item in items)
