"""What the tests on a GPU have in common: sizes, names, and what is asked."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pynvml

from config.gpus import VISIBLE
from tests.rig.asking import ask
from tests.rig.serving import Prism

MODELS = ("qwen3-0.6b", "llama-1b", "llama-3b")
COMPARED = ("qwen3-0.6b", "llama-3b")
"""With SGLang's own engine, which takes most of a minute to start for each."""


def _last_gpu() -> int:
    """Where there are several, not the first: that is where threads begin that nobody has told where to work."""
    if visible := os.environ.get(VISIBLE):
        return visible.count(",")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    try:
        return max(0, int(pynvml.nvmlDeviceGetCount()) - 1)
    finally:
        pynvml.nvmlShutdown()


GPU = _last_gpu()
DEVICE = f"cuda:{GPU}"
PATIENCE = 300.0
"""Seconds after which a test gives up: the first activations on a machine compile kernels."""
SLACK = 256 * 2**20
"""Bytes of GPU memory that the driver may still count while processes end."""

TOKENS = 48
"""Of each answer."""
SAMPLING = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
LONG = 4096
"""Tokens of a long prompt: two are more than a step prefills, so the second is prefilled in pieces."""


WITHOUT_PREFILL_GRAPHS = {"disable_prefill_cuda_graph": True}
"""Where answers are compared: a step with a graph is padded, and a product of other heights rounds differently."""


def _prompts() -> list[list[int]]:
    """They share no prefix: bf16 gives other last digits where the prefix cache has a part of a prompt."""
    chosen = random.Random(1)
    return [[first, *(chosen.randrange(300, 3000) for _ in range(first % 200))] for first in range(1001, 1009)]


PROMPTS = _prompts()
"""Token ids."""
LONG_PROMPTS = [[first, *random.Random(first).choices(range(300, 3000), k=LONG - 1)] for first in range(1001, 1009)]
"""Likewise."""


def registry(models: Path) -> dict[str, object]:
    """Three workers, of which two are blank whenever nobody needs them; memory is short enough for limits to move."""
    return {
        "pool": {
            "engine": "sglang",
            "devices": [DEVICE],
            "workers_per_device": 3,
            "blank_reserve": 2,
            "max_running": 8,
            "device_memory": "24GiB",
            "kv_minimum": "512MiB",
            "silence": "30s",
        },
        "weight_store": {"host_memory": "16GiB"},
        "scheduler": {"idle_timeout": "1h", "quantum": "200ms", "drain_after": "200ms"},
        "models": [
            {"name": name, "path": str(models / name), "preload": True, "engine_args": WITHOUT_PREFILL_GRAPHS}
            for name in MODELS
        ],
    }


def answer(prism: Prism, model: str, prompt: list[int]) -> Any:
    """Token ids."""
    got = ask(prism, "POST", "/generate", {"model": model, "input_ids": prompt, "sampling_params": SAMPLING})
    assert got.status == 200, got.body
    return got.json["output_ids"]


def evict(prism: Prism, model: str) -> None:
    """It need not be active: an operator may come too late."""
    if prism.model(model).state == "active":
        prism.command("evict", model=model)
