"""Measures the link to devices: `python -m enginepool.host.link_rate DEVICE...` prints JSON by device.

It is a separate process, so that no CUDA context remains on a device.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

SIZE = 2**30
"""Bytes per copy."""
TRIES = 5


def measure(device: str) -> dict[str, Any]:
    """Best rate of several copies from pinned host memory to `device`, in GB/s (10^9 bytes); on a CPU, of memcpy."""
    on_gpu = device != "cpu"
    source = torch.ones(SIZE, dtype=torch.uint8, pin_memory=on_gpu)
    target = torch.empty(SIZE, dtype=torch.uint8, device=device)
    best = 0.0
    for _ in range(TRIES):
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        if on_gpu:
            torch.cuda.synchronize(device)
        best = max(best, SIZE / (time.perf_counter() - began) / 1e9)
    return {"gbps": best, "what": f"pinned host memory to {device}" if on_gpu else "memcpy, there is no link"}


def measure_all(devices: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Measure devices one after another; one that is unusable or has no room for a copy gets an `error` instead."""
    measured: dict[str, dict[str, Any]] = {}
    for device in devices:
        try:
            measured[device] = measure(device)
        except RuntimeError as error:  # includes CUDA errors and torch's OutOfMemoryError
            measured[device] = {"error": str(error).strip().partition("\n")[0]}
    return measured


if __name__ == "__main__":
    print(json.dumps(measure_all(sys.argv[1:])))
