"""Kernels of torch that any model's first steps use, loaded while the worker is blank.

CUDA loads a kernel when a process launches it first, and the driver takes 10 to 100 ms for some: 0.3 s of a first token
in a new process went there, two thirds of it into embedding, sampling and the choice of last tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_VOCABULARY = 131072
_HIDDEN = 2048
_TOKENS = (1, 16, 256)
"""For matrix products of different heights cuBLAS has different kernels."""


def preload_kernels() -> None:
    """Launch each once, with as little memory as it takes: some 30 MB, which is free again afterwards."""
    with torch.device("cuda"), torch.inference_mode():
        _run_layers()
        _choose_tokens()
        _keep_books()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def _run_layers() -> None:
    table = torch.zeros((1024, _HIDDEN), dtype=torch.bfloat16)
    for tokens in _TOKENS:
        ids = torch.zeros(tokens, dtype=torch.int64)
        hidden = functional.embedding(ids, table)
        functional.linear(hidden, table)
        hidden[torch.cumsum(torch.ones(1, dtype=torch.int64), dim=0) - 1]


def _choose_tokens() -> None:
    """As SGLang's sampler does, greedy and not, with and without top_k and top_p."""
    logits = torch.zeros((1, _VOCABULARY), dtype=torch.bfloat16).float()
    torch.argmax(logits, -1)
    logits.div_(torch.ones((1, 1)))
    probabilities = torch.softmax(logits, dim=-1)
    torch.multinomial(probabilities, num_samples=1).view(-1).to(torch.int32)
    ordered, indices = probabilities.sort(dim=-1, descending=True)
    summed = torch.cumsum(ordered, dim=-1)
    ordered[(summed - ordered) > 0.5] = 0.0
    torch.gather(indices, dim=1, index=torch.multinomial(ordered, num_samples=1))


def _keep_books() -> None:
    """What the Scheduler does with positions and places in the KV cache."""
    places = torch.arange(16, dtype=torch.int64)
    targets: list[Tensor] = [torch.zeros_like(places), torch.zeros_like(places)]
    torch._foreach_copy_(targets, [places, places])
    torch.cat([places, places]).clone()
    table = torch.zeros((4, 16), dtype=torch.int32)
    table[torch.zeros(2, dtype=torch.int64), places[:2]] = places[:2].to(torch.int32)
    places.clamp_(min=0).add_(1)
    places.to("cpu", non_blocking=True)
