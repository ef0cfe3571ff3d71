"""Weights that nobody trained: random numbers in the place of a checkpoint, for any module, the same for the same seed.

No two tensors are equal, norms are ones, biases are zeros, and all else is spread so that answers depend on the prompt
and never are NaN. Making them costs next to nothing: some numbers are drawn, written again and again into a file in
memory, and each weight is a private mapping of that file from a place of its own. What takes time and memory is the
copy into the segment, as with any weights.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat

import numpy as np
import torch
from torch import Tensor, nn

from config.errors import StoreError

STD = 0.05
"""Of weights. In a narrow model logits need more, or one token is said for ever."""
STD_NARROW = 0.08
NARROW = 512
"""Hidden units."""
FP8_STD = 64.0
"""Of fp8 values before their scale; fp8 e4m3 ends at 448."""
INPUT_SCALE = 1 / 32
"""Of activations in fp8, where the checkpoint has it: up to 14 in e4m3."""
DRAWN = 2**24 - 3
"""Numbers that are drawn. A prime, so that no two rows of a matrix begin at the same one."""
STEP = 512
"""Numbers between two places where a tensor may begin, so that it does in memory where one of its own would."""
STRIDE = 10007
"""Places from one tensor's to the next one's. A prime, so that all places are taken before one is again."""

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
KINDS = (torch.float32, torch.bfloat16, torch.float16, *_FP8)


def fill(module: nn.Module, seed: str, hidden: int) -> None:
    """Give every parameter of `module`, on the CPU, what a checkpoint would; `hidden` is the model's width.

    Raises:
        StoreError: a parameter is of a type that a number's meaning cannot be guessed of, such as packed integers.
    """
    std = STD_NARROW if hidden < NARROW else STD
    matrices: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.dtype not in KINDS:
            raise StoreError(f"{name} is of {parameter.dtype}: dummy weights are of floating-point numbers only")
        if _is_scale(name):
            _fill_scale(name, parameter.data, std / FP8_STD)
        elif parameter.dim() < 2:
            parameter.data.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            matrices[parameter.dtype].append(parameter)
    for dtype, found in matrices.items():
        _fill_matrices(found, dtype, seed, FP8_STD if dtype in _FP8 else std)


def _is_scale(name: str) -> bool:
    return "scale" in name.rpartition(".")[2]


def _fill_scale(name: str, scale: Tensor, of_weights: float) -> None:
    """Those of keys and values, and others with a default, keep it."""
    attribute = name.rpartition(".")[2]
    if "input" in attribute:
        scale.fill_(INPUT_SCALE)
    elif "weight" in attribute:
        scale.fill_(of_weights)
    elif not bool((scale > 0).all()):
        scale.fill_(1.0)


def _fill_matrices(matrices: list[nn.Parameter], dtype: torch.dtype, seed: str, std: float) -> None:
    most = max(parameter.numel() for parameter in matrices)
    with _noise(dtype, seed, std, DRAWN + most) as path:
        for index, parameter in enumerate(matrices):
            start = index * STRIDE % (DRAWN // STEP) * STEP
            # Private: what a model's own code changes afterwards is its copy.
            mapped = torch.from_file(path, shared=False, size=start + parameter.numel(), dtype=dtype)
            parameter.data = mapped[start:].view(parameter.shape)


@contextmanager
def _noise(dtype: torch.dtype, seed: str, std: float, length: int) -> Iterator[str]:
    """A file in memory of `length` numbers, to be mapped until the end of the context; mappings outlive it."""
    drawn = _draw(dtype, seed, std).view(torch.uint8).numpy().data
    fd = os.memfd_create("prism-noise", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", buffering=0, closefd=False) as file:
            for block in repeat(drawn, math.ceil(length / DRAWN)):
                file.write(block)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _draw(dtype: torch.dtype, seed: str, std: float) -> Tensor:
    """`DRAWN` numbers, evenly spread, by arithmetic that is the same on every machine."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16])
    bits = np.random.Philox(key=key).random_raw(math.ceil(DRAWN / 4)).view(np.uint16)[:DRAWN]
    width = math.sqrt(3) * std
    even = (bits.astype(np.float32) + np.float32(0.5 - 2**15)) * np.float32(width / 2**15)
    return torch.from_numpy(even).to(dtype)
