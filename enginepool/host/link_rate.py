"""What the link to a device can do: `python -m enginepool.host.link_rate DEVICE...` prints it as JSON, by device.

A process of its own, so that no CUDA context of the measurement stays on a device.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

SIZE = 2**30
"""Bytes of one copy."""
TRIES = 5


def measure(device: str) -> dict[str, Any]:
    """GB/s (10^9 bytes) from pinned host memory to `device`, the best of some copies; on a CPU, of memcpy."""
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
    """One after another; a device that cannot be used, or has no room for one copy, has an `error` instead."""
    measured: dict[str, dict[str, Any]] = {}
    for device in devices:
        try:
            measured[device] = measure(device)
        except RuntimeError as error:  # torch's, with CUDA's own and its OutOfMemoryError
            measured[device] = {"error": str(error).strip().partition("\n")[0]}
    return measured


if __name__ == "__main__":
    print(json.dumps(measure_all(sys.argv[1:])))
