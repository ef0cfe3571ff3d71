"""The registry of each run, used by both `prism serve` and the simulator.

The default one has Llamas of three sizes, with objectives of a few times what each needs alone on an H200.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from subprocess import run
from tempfile import TemporaryDirectory
from typing import Any

import pynvml
import yaml
from msgspec.structs import fields

from bench.subjects.processes import PROJECT
from config.reader import read_registry
from config.registry import PoolConfig, Registry
from simulator.errors import StudyError, UsageError

SHAPES = ("llama-1b", "llama-8b", "llama-3b", "llama-1b", "llama-3b", "llama-8b", "llama-1b", "llama-3b")
"""Most requested model first; on one GPU, only the first `ON_ONE_GPU` are used."""
ON_ONE_GPU = 5
OBJECTIVES: Mapping[str, Mapping[str, str]] = {
    "llama-1b": {"ttft": "300ms", "tpot": "5.2ms"},
    "llama-3b": {"ttft": "400ms", "tpot": "7ms"},
    "llama-8b": {"ttft": "550ms", "tpot": "11ms"},
}
ON_CPU: Mapping[str, str] = {"ttft": "3s", "tpot": "200ms"}
WORKERS = 9
"""Workers per GPU: one more than there are models, so that `space` can have all of them on each GPU."""
MEMORY = 73 * 2**30
"""Bytes of each GPU for Prism."""
HOST_MEMORY = "80GiB"


def can_share_by_mps() -> bool:
    """Whether registries have a word on NVIDIA's MPS."""
    return "mps" in {field.name for field in fields(PoolConfig)}


def number_of_gpus() -> int:
    """Number of GPUs of this machine. Raises: StudyError without a driver."""
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError as error:
        raise StudyError(f"no GPU: {error}; --tiny runs on the CPU, --gpus N is for --simulate-only") from error


def own_registry(folder: Path, gpus: int, *, tiny: bool) -> dict[str, Any]:
    """The default registry; missing models are created in `folder`. Raises: StudyError."""
    shapes = SHAPES if gpus > 1 else SHAPES[:ON_ONE_GPU]
    _make(folder, sorted({*shapes}), tiny=tiny)
    pool = {"engine": "sglang", "devices": [f"cuda:{gpu}" for gpu in range(gpus)], "max_running": 64}
    on_cpu = {"engine": "transformers", "devices": ["cpu"], "kv_memory": "2GiB"}
    return {
        "pool": {**(on_cpu if tiny else pool), "workers_per_device": len(shapes) if tiny else WORKERS},
        "weight_store": {"host_memory": "4GiB" if tiny else HOST_MEMORY},
        "models": [_entry(folder / shape, shapes[:index].count(shape), tiny) for index, shape in enumerate(shapes)],
    }


def read_content(file: Path) -> dict[str, Any]:
    """The contents of a registry file, with absolute paths. Raises: StudyError."""
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"{file}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("models"), list):
        raise UsageError(f"{file}: expected a registry with a list of models")
    for model in content["models"]:
        for key in {"path", "shape"} & {*model}:
            model[key] = str(file.parent.absolute() / model[key])
    return content


def variant(content: Mapping[str, Any], policy: str, *, mps: bool, memory: int | None) -> dict[str, Any]:
    """The registry of one run. `memory` is in bytes per device; None leaves it unchanged."""
    made = deepcopy(dict(content))
    pool = made.setdefault("pool", {})
    made.setdefault("scheduler", {})["policy"] = policy
    if memory is not None:
        pool["device_memory"] = memory
    if can_share_by_mps():
        pool["mps"] = "on" if mps else "off"
    for model in made["models"]:
        model.setdefault("preload", True)
    return made


def as_registry(content: Mapping[str, Any]) -> Registry:
    """Raises: ConfigError."""
    with TemporaryDirectory(prefix="prism-bench-") as folder:
        file = Path(folder) / "registry.yaml"
        file.write_text(yaml.safe_dump(dict(content)))
        return read_registry(file, serving=False)


def _entry(folder: Path, number: int, tiny: bool) -> dict[str, Any]:
    slo = dict(ON_CPU if tiny else OBJECTIVES[folder.name])
    return {
        "name": f"{folder.name}-{number}",
        "path": str(folder),
        "weights": "dummy",
        "dtype": "bfloat16",
        "slo": slo,
    }


def _make(folder: Path, shapes: Sequence[str], *, tiny: bool) -> None:
    """Create models in a process of its own, so that no CUDA context remains. Raises: StudyError."""
    options = ["--no-weights", *(["--tiny"] if tiny else [])]
    command = [sys.executable, "-m", "bench.shapes", "--out", str(folder.absolute()), *shapes, *options]
    if run(command, cwd=PROJECT, check=False).returncode:
        raise StudyError("the models could not be created")
