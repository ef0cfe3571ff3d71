"""Starts the gateway whose workers are measured: one model per seat, all in host memory, activated by command."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bench.calibration.worker_plan import WorkerPlan, WorkerSeat
from bench.calibration.worker_rows import SPLITS
from bench.subjects.gateway_under_test import GatewayUnderTest, serving

START_TIMEOUT = 420.0
"""Seconds for the workers to start."""
HOST_SLACK = 1.25
"""Host memory for weights, relative to their size."""
MAX_RUNNING = 32


@asynccontextmanager
async def gateway(
    plan: WorkerPlan, nbytes: int, folder: Path, device: str, *, mps: bool
) -> AsyncIterator[GatewayUnderTest]:
    """Run a gateway. Its models, created in `folder` by `make`, have `nbytes` of weights in total. Raises:
    StudyError."""
    async with serving(_registry(plan, nbytes, folder, device, mps=mps), START_TIMEOUT) as subject:
        yield subject


def make(configs: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Write each model's config.json, which is enough with dummy weights. Raises: OSError."""
    for name, config in configs.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))


def _registry(plan: WorkerPlan, nbytes: int, folder: Path, device: str, *, mps: bool) -> dict[str, Any]:
    seats = plan.seats
    pool: dict[str, Any] = {
        "engine": "sglang",
        "devices": [device],
        "workers_per_device": len(seats),
        "blank_reserve": 0,
        "max_running": MAX_RUNNING,
        "mps": "on" if mps else "off",
    }
    return {
        "pool": pool,
        "weight_store": {"host_memory": int(HOST_SLACK * nbytes) + 2 * 2**30},
        "scheduler": {"policy": "lru", "idle_timeout": "24h"},
        "models": [_model(seat, folder / seat.model) for seat in seats],
    }


def _model(seat: WorkerSeat, folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": seat.name,
        "shape": str(folder / "config.json"),
        "weights": "dummy",
        "dtype": "bfloat16",
        "preload": True,
    }
    if seat.kv_splits != SPLITS:
        made["engine_args"] = {"triton_attention_num_kv_splits": seat.kv_splits}
    return made
