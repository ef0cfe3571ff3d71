"""Four models for two workers, of which half find room in host memory: they are loaded and swapped all the time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gateway.demo_models import make_demo_models

SAME = ("llama-tiny", "qwen3-tiny")
"""Of the demo's models those that both engines read the same way."""
HOST_MEMORY = "40MiB"
"""For two of the models in float32."""
NOISE = 0.02
"""Standard deviation; weights have 0.08."""


def make_models(made: Path, folder: Path) -> list[Path]:
    """Copies, for faults will befall them, of the demo's models, which are made in `made` where it lacks them."""
    make_demo_models(made, lambda text: None)
    copies = []
    for seed, name in enumerate(SAME):
        copies.append(shutil.copytree(made / name, folder / name))
        copies.append(shutil.copytree(made / name, folder / f"{name}-other"))
        _alter(copies[-1] / "model.safetensors", seed)
    return copies


def _alter(file: Path, seed: int) -> None:
    """No two models are to say the same."""
    chance = torch.Generator().manual_seed(seed)
    weights = {name: it + NOISE * torch.randn(it.shape, generator=chance) for name, it in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})


def registry(engine: str, models: Sequence[Path], policy: str) -> dict[str, Any]:
    """Whatever has to wait for a time to pass does not wait for long."""
    pool: dict[str, Any] = {"engine": engine, "workers_per_device": 2, "heartbeat": 0.5, "silence": 8.0}
    if engine == "sglang":
        pool |= {"kv_memory": "64MiB"}
    return {
        "gateway": {"limits": {"header_timeout": 2.0, "body_timeout": 2.0}},
        "pool": pool,
        "weight_store": {"host_memory": HOST_MEMORY},
        "scheduler": {"policy": policy, "quantum": 0.2, "drain_after": 0.2, "backoff": 0.1},
        "models": [{"name": path.name, "path": str(path), "dtype": "float32"} for path in models],
    }
