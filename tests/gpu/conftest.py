"""One GPU, models of real shapes, and one gateway for all tests, since starting it takes half a minute."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml
import pytest

from bench.shapes import make_models
from bench.subjects.device_memory import DeviceMemory
from config.errors import PoolError
from config.gpus import nvml_handle, visible_name
from tests.gpu.settings import COMPARED, DEVICE, MODELS, PATIENCE, SLACK, registry
from tests.rig import asking, serving
from tests.rig.serving import Prism

Answers = dict[str, list[list[int]]]
"""By model, then by prompt: token ids."""


@pytest.fixture(scope="session")
def memory() -> Iterator[DeviceMemory]:
    """Of the GPU; without one there is nothing to test."""
    for package in ("sglang", "kvcached"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: make gpu")
    try:
        pynvml.nvmlInit()
        handle = nvml_handle(visible_name(DEVICE, os.environ))
    except (pynvml.NVMLError, PoolError) as error:
        pytest.skip(f"there is no GPU: {error}")
    yield DeviceMemory(handle)
    pynvml.nvmlShutdown()


@pytest.fixture(scope="session")
def models(memory: DeviceMemory, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that they are in."""
    folder = tmp_path_factory.mktemp("models")
    make_models(folder, MODELS, tiny=False)
    return folder


@pytest.fixture(scope="session")
def expected(models: Path) -> Answers:
    """What SGLang's own engine says to each prompt."""
    engines = {name: _reference(models / name) for name in COMPARED}
    answers = {name: engine.communicate()[0] for name, engine in engines.items()}
    assert all(engine.returncode == 0 for engine in engines.values())
    return {name: json.loads(output.splitlines()[-1]) for name, output in answers.items()}


def _reference(model: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.gpu.reference", str(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="session")
def prism(
    run_mark: str, models: Path, expected: Answers, memory: DeviceMemory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prism]:
    """Everything of it must be gone in the end, from the GPU as well."""
    before = memory.used
    with pytest.MonkeyPatch.context() as patch:
        for module in (asking, serving):
            patch.setattr(module, "PATIENCE", PATIENCE)
        prism = Prism.start(tmp_path_factory.mktemp("gpu") / "gateway", registry(models))
        prism.wait_for_workers()
        yield prism
        processes = prism.descendants()
        prism.close()
    assert not psutil.wait_procs(processes, timeout=PATIENCE)[1]
    assert not [file for process in processes for file in Path("/dev/shm").glob(f"prism-kv-{process.pid}-*")]
    assert memory.used <= before + SLACK


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> None:
    """In place of the check after each test: the gateway serves on, with other processes after a kill."""
