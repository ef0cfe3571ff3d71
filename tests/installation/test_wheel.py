"""A wheel of Prism takes one name, so that it lives beside other people's packages named `config` or `gateway`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bench.subjects.processes import PROJECT

REGISTRY = PROJECT / "config" / "examples" / "one-gpu.yaml"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in tracked.splitlines():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROJECT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source], check=True)
    (made,) = folder.glob("*.whl")
    return made


def test_it_takes_one_name_and_leaves_the_benchmarks_out(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"prism_serving"}
    packages = {name.split("/")[1] for name in names if name.startswith("prism_serving/") and name.count("/") > 1}
    assert packages == {"config", "enginepool", "gateway", "scheduler", "simulator"}


def test_its_command_works_beside_a_package_of_somebody_else_named_config(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    (tmp_path / "config.py").write_text("raise SystemExit('not Prism')")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "prism_serving", "check", str(REGISTRY)]
    checked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert ": ok; " in checked.stdout
