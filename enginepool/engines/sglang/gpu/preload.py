"""Loads torch kernels that every model's first steps use while the worker is still blank.

CUDA loads a kernel at its first launch in a process, which takes the driver 10 to 100 ms for some of them: 0.3 s of the
TTFT in a new process, two thirds of that for embedding, sampling and selecting last tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_VOCABULARY = 131072
_HIDDEN = 2048
_TOKENS = (1, 16, 256)
"""cuBLAS uses different kernels for matrix products of different heights."""


def preload_kernels() -> None:
    """Launch each kernel once, with as little memory as possible: some 30 MB, freed afterwards."""
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
    """What SGLang's sampler does, greedy or not, with and without top_k and top_p."""
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
    """What the Scheduler does with positions and slots of the KV cache."""
    places = torch.arange(16, dtype=torch.int64)
    targets: list[Tensor] = [torch.zeros_like(places), torch.zeros_like(places)]
    torch._foreach_copy_(targets, [places, places])
    torch.cat([places, places]).clone()
    table = torch.zeros((4, 16), dtype=torch.int32)
    table[torch.zeros(2, dtype=torch.int64), places[:2]] = places[:2].to(torch.int32)
    places.clamp_(min=0).add_(1)
    places.to("cpu", non_blocking=True)
