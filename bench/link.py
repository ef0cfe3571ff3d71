"""What the link to a device can do: `python -m bench.link DEVICE` prints it as JSON.

A process of its own, so that no CUDA context of the measurement stays on the device.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import torch

from bench.errors import BenchError
from bench.processes import PROJECT

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


async def link_rate(device: str) -> dict[str, Any]:
    """`measure` in a process of its own. Raises: BenchError."""
    command = [sys.executable, "-m", "bench.link", device]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=PROJECT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise BenchError(f"the link to {device} cannot be measured: {errors.decode(errors='replace')[-500:].strip()}")
    measured: dict[str, Any] = json.loads(output)
    return measured


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
