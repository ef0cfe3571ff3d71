"""The environment of processes that serve on GPUs, with packages in place of those that only such machines have."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bench.subjects.processes import PROJECT

LIBRARY = "torch_memory_saver_hook_mode_preload_cu13.abi3.so"
RUNTIME = "nvidia/cu13/lib/libcudart.so.13"
ASK = "import json; from enginepool.host.gpu_environment import gpu_environment as asked; print(json.dumps(asked({})))"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """The folder that they are in: what tells a process that imports none of them that they are there."""
    for name in ("kvcached", "torch_memory_saver", "torch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "torch" / "version.py").write_text("cuda: Optional[str] = '13.0'\n")
    (tmp_path / LIBRARY).touch()
    (tmp_path / RUNTIME).parent.mkdir(parents=True)
    (tmp_path / RUNTIME).touch()
    return tmp_path


def environment(packages: Path, current: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": f"{packages}:{PROJECT}", "HOME": "/home/somebody"}
    command = [sys.executable, "-c", ASK.format(dict(current))]
    return subprocess.run(command, env=variables, text=True, capture_output=True)


def made(packages: Path, current: Mapping[str, str]) -> dict[str, str]:
    result = environment(packages, current)
    assert result.returncode == 0, result.stderr
    found: dict[str, str] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("current", "folder"),
    [
        ({}, "/home/somebody/.triton/cache"),
        ({"TRITON_HOME": "/lasting"}, "/lasting/.triton/cache"),
        ({"TRITON_HOME": "/lasting", "TRITON_CACHE_DIR": "/kernels"}, "/kernels"),
    ],
)
def test_where_kernels_are_kept_is_settled_before_torch_settles_it(
    packages: Path, current: Mapping[str, str], folder: str
) -> None:
    assert made(packages, current)["TRITON_CACHE_DIR"] == folder


def test_the_memory_savers_library_comes_before_all_else_that_is_preloaded(packages: Path) -> None:
    ours = f"{packages / LIBRARY}:{packages / RUNTIME}"
    assert made(packages, {})["LD_PRELOAD"] == ours
    assert made(packages, {"LD_PRELOAD": "/other.so"})["LD_PRELOAD"] == f"{ours}:/other.so"


def test_what_compiles_kernels_is_found_without_an_activated_environment(packages: Path) -> None:
    environment = made(packages, {"PATH": "/usr/bin"})
    assert environment["PATH"] == f"/usr/bin:{Path(sys.executable).parent}"
    assert "CUDA_HOME" not in made(packages, {"CUDA_HOME": "/opt/cuda"})


def test_a_package_that_is_missing_is_named(packages: Path) -> None:
    (packages / "kvcached" / "__init__.py").unlink()
    (packages / "kvcached").rmdir()
    refused = environment(packages, {})
    assert refused.returncode != 0
    assert "the engine sglang needs the package kvcached on a GPU" in refused.stderr


def test_a_torch_without_cuda_is_refused(packages: Path) -> None:
    (packages / "torch" / "version.py").write_text("cuda: Optional[str] = None\n")
    assert "this build of torch has no CUDA" in environment(packages, {}).stderr
