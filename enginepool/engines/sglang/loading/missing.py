"""Finds parameters that a checkpoint does not contain, which SGLang's loaders silently leave uninitialised."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_MARKS: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.float32: (torch.int32, 0x7FA5A5A5),
    torch.float16: (torch.int16, 0x7DA5),
    torch.bfloat16: (torch.int16, 0x7FA5),
    torch.float8_e4m3fn: (torch.uint8, 0x7F),
    torch.float8_e5m2: (torch.uint8, 0x7D),
}
"""For each dtype: the integer type of its size, and a NaN pattern that no arithmetic produces."""
_UNSET = torch.finfo(torch.float32).min
"""SGLang's initial value of scales that the checkpoint should contain."""
_PIECE = 2**24
"""Elements compared at a time."""


class Marks:
    """Fills a model's parameters with marks before it is loaded; `left` lists those that still contain marks after.

    These are missing, entirely or in part, such as one key of a fused attention or one expert. Scales are not marked,
    since many are meant to keep their default; nor are packed integers, in which any value is valid.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        for name, parameter in module.named_parameters():
            if parameter.dtype in _MARKS and not _is_scale(name, parameter) and parameter.is_contiguous():
                integer, mark = _MARKS[parameter.dtype]
                parameter.data.view(integer).fill_(mark)

    def left(self) -> list[str]:
        return sorted(name for name, it in self._module.named_parameters() if _is_missing(name, it.data))


def _is_scale(name: str, parameter: Tensor) -> bool:
    return "scale" in name.rpartition(".")[2] or getattr(parameter, "_skip_weight_check", False)


def _is_missing(name: str, data: Tensor) -> bool:
    if _is_scale(name, data):
        return data.dtype == torch.float32 and bool((data == _UNSET).any())
    if data.dtype not in _MARKS or not data.is_contiguous():
        return False
    integer, mark = _MARKS[data.dtype]
    marks = data.view(integer).reshape(-1)
    return any(bool((marks[at : at + _PIECE] == mark).any()) for at in range(0, len(marks), _PIECE))
