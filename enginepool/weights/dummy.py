"""Dummy weights: random numbers instead of a checkpoint, for any module, reproducible from a seed.

All tensors differ, norms are ones, biases are zeros, and everything else is scaled such that answers depend on the
prompt and never become NaN. Generating them costs next to nothing: a limited set of random numbers is written
repeatedly into a memory file, and each weight is a private mapping of that file at its own offset. As with any weights,
the copy into the segment is what takes time and memory.
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
"""Standard deviation of weights."""
STD_NARROW = 0.08
"""Standard deviation in narrow models, whose logits would otherwise be so flat that one token repeats forever."""
NARROW = 512
"""Hidden size below which a model is narrow."""
FP8_STD = 64.0
"""Standard deviation of fp8 values before scaling; the largest e4m3 value is 448."""
INPUT_SCALE = 1 / 32
"""Scale of fp8 activations, for checkpoints that store one: covers values up to 14 in e4m3."""
DRAWN = 2**24 - 3
"""Number of random numbers drawn. Prime, so that no two rows of a matrix begin with the same number."""
STEP = 512
"""Tensors begin at multiples of this many numbers, so that they are aligned like separately allocated tensors."""
STRIDE = 10007
"""Steps from one tensor's offset to the next one's. Prime, so that all offsets are used before one repeats."""

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
KINDS = (torch.float32, torch.bfloat16, torch.float16, *_FP8)


def fill(module: nn.Module, seed: str, hidden: int) -> None:
    """Fill every parameter of `module`, on the CPU, in place of a checkpoint; `hidden` is the model's hidden size.

    Raises:
        StoreError: a parameter is not of a floating-point type, for example packed integers.
    """
    std = STD_NARROW if hidden < NARROW else STD
    matrices: dict[torch.dtype, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in module.named_parameters():
        if parameter.dtype not in KINDS:
            raise StoreError(f"{name} is of {parameter.dtype}: dummy weights support floating-point numbers only")
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
    """Set a scale; those with a positive default, such as scales of the KV cache, keep it."""
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
            # A private mapping: if the model's own code changes it later, it gets a copy.
            mapped = torch.from_file(path, shared=False, size=start + parameter.numel(), dtype=dtype)
            parameter.data = mapped[start:].view(parameter.shape)


@contextmanager
def _noise(dtype: torch.dtype, seed: str, std: float, length: int) -> Iterator[str]:
    """A memory file of `length` random numbers, to be mapped within the context; the mappings outlive it."""
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
    """`DRAWN` uniformly distributed numbers, computed in a way that is the same on every machine."""
    key = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16])
    bits = np.random.Philox(key=key).random_raw(math.ceil(DRAWN / 4)).view(np.uint16)[:DRAWN]
    width = math.sqrt(3) * std
    even = (bits.astype(np.float32) + np.float32(0.5 - 2**15)) * np.float32(width / 2**15)
    return torch.from_numpy(even).to(dtype)
