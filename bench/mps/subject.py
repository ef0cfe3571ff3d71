"""One process of `bench.mps`: `python -m bench.mps.subject WORK BYTES`, in the environment to be tested.

It holds BYTES of GPU memory and repeats WORK from one line on standard input until the next, then prints a line of
JSON. WORK is `decode-1b` or `decode-8b`, a decode step of one request with the matrix products of such a model in a
CUDA graph; `prefill-8b`, 2,048 tokens through such a model without a graph; or `idle`.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class LayerShape(NamedTuple):
    hidden: int
    intermediate: int
    layers: int


SHAPES = {"1b": LayerShape(2048, 8192, 16), "8b": LayerShape(4096, 14336, 32)}
PREFILL = 2048
"""Tokens."""


def main() -> None:
    work, nbytes = sys.argv[1], int(sys.argv[2])
    ballast = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
    ballast.zero_()
    step = _idle if work == "idle" else _step(*work.split("-"))
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    free, _ = torch.cuda.mem_get_info()
    print(json.dumps({"pid": os.getpid(), "reserved": torch.cuda.memory_reserved(), "device_free": free}), flush=True)
    sys.stdin.readline()
    print(json.dumps(_measure(step)), flush=True)
    sys.stdin.readline()  # hold the memory until told to end


def _measure(step: Callable[[], object]) -> dict[str, Any]:
    """Repeat `step` until there is a line on standard input; returns statistics in seconds."""
    taken = []
    while not select.select([sys.stdin], [], [], 0)[0]:
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    sys.stdin.readline()
    ordered = sorted(taken)
    return {"steps": len(taken), "p50": statistics.median(taken), "p95": ordered[int(0.95 * (len(taken) - 1))]}


def _idle() -> None:
    time.sleep(0.01)


def _step(kind: str, size: str) -> Callable[[], object]:
    tokens = PREFILL if kind == "prefill" else 1
    forward = _forward(SHAPES[size], tokens)
    return forward if kind == "prefill" else _captured(forward)


def _forward(shape: LayerShape, tokens: int) -> Callable[[], object]:
    """The matrix products of a model's layers."""
    sizes = [(shape.hidden, 2 * shape.hidden), (2 * shape.hidden, shape.hidden)]
    sizes += [(shape.hidden, 2 * shape.intermediate), (2 * shape.intermediate, shape.hidden)]
    layers = [[_weight(*size) for size in sizes] for _ in range(shape.layers)]
    x = torch.randn((tokens, shape.hidden), dtype=torch.bfloat16, device="cuda")

    def forward() -> torch.Tensor:
        y = x
        for layer in layers:
            for weight in layer:
                y = y @ weight
        return y

    return forward


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn((rows, columns), dtype=torch.bfloat16, device="cuda").mul_(rows**-0.5)


def _captured(forward: Callable[[], object]) -> Callable[[], object]:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward()
    return graph.replay


if __name__ == "__main__":
    main()
