"""`make gpu`, as far as it goes without installing anything."""

from __future__ import annotations

import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.subjects.processes import PROJECT
from enginepool import tested
from gateway.doctor.driver import CHECK
from installation import packages, preflight, toolkit
from installation.paths import KVCACHED, PINS
from installation.terminal import InstallationError

RUNTIME = packages.pins(PROJECT / "requirements" / "runtime.txt")
DEV = packages.pins(PROJECT / "requirements" / "dev.txt")


def normal(pins: dict[str, str]) -> dict[str, str]:
    return {name.lower().replace("_", "-"): version for name, version in pins.items()}


def test_what_is_pinned_is_what_was_tested() -> None:
    pins = {**normal(packages.pins(PINS)), **packages.pins(KVCACHED)}
    assert pins["sglang"] in tested.SGLANG
    assert pins["kvcached"] in tested.KVCACHED
    assert pins["torch"] in tested.TORCH
    assert pins["transformers"] in tested.TRANSFORMERS
    assert pins["torch-memory-saver"] in tested.TORCH_MEMORY_SAVER


def test_an_environment_for_gpus_holds_all_that_prism_needs_and_the_tools_for_tests_fit_in() -> None:
    pins = normal(packages.pins(PINS))
    assert normal(RUNTIME).keys() <= pins.keys()
    both = normal(DEV).keys() & pins.keys()
    assert {name: pins[name] for name in both} == {name: normal(DEV)[name] for name in both}


def test_the_extra_gpu_asks_for_what_is_pinned() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [requirement.partition(">=")[2].partition(",")[0] for requirement in extras["gpu"]] == [
        packages.pins(PINS)["sglang"],
        packages.pins(KVCACHED)["kvcached"],
    ]


# What the machine lacks


def test_all_that_is_lacking_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "driver_cuda", lambda: None)
    monkeypatch.setattr(preflight, "PYTHONS", ((4, 0), (4, 1)))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not preflight.passes(without_gpu=False)
    said = capsys.readouterr().out
    assert f"missing: {CHECK}, Python, C++ compiler; nothing was installed" in said
    assert "apt-get install build-essential" in said


def test_without_a_gpu_one_installs_only_if_one_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "driver_cuda", lambda: None)
    monkeypatch.setattr(preflight, "DISK", 0)
    assert not preflight.passes(without_gpu=False)
    assert "make gpu ARGS=--without-gpu" in capsys.readouterr().out
    assert preflight.passes(without_gpu=True)


def test_room_on_the_disk_is_asked_for_before_it_runs_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "DISK", 10**18)
    lacking = [finding.check for finding in preflight.findings() if finding.status == "failed"]
    assert "disk" in lacking


# Packages that a run which was cut off has left


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Lays a package `cut` with one module into a folder of `sys.path`, and returns its dist-info."""

    def lay(version: str) -> Path:
        (tmp_path / "cut.py").touch()
        folder = tmp_path / f"cut-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cut\nVersion: {version}\n")
        (folder / "RECORD").write_text(f"cut.py,,\n{folder.name}/METADATA,,\n{folder.name}/RECORD,,\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        return folder

    return lay


def test_a_package_is_intact_in_its_version_with_all_its_files(installed: Callable[..., Path]) -> None:
    folder = installed("1.0")
    assert packages.is_intact("cut", "1.0")
    assert not packages.is_intact("cut", "1.1")
    assert not packages.is_intact("never-installed-anywhere", "1.0")
    (folder.parent / "cut.py").unlink()
    assert not packages.is_intact("cut", "1.0")


def test_a_package_that_pip_did_not_finish_is_not_intact(installed: Callable[..., Path]) -> None:
    (installed("1.0") / "RECORD").unlink()
    assert not packages.is_intact("cut", "1.0")


def test_a_build_for_the_cpu_is_not_the_one_that_is_pinned(installed: Callable[..., Path]) -> None:
    installed("1.0+cpu")
    assert not packages.is_intact("cut", "1.0")


# The CUDA toolkit


@pytest.fixture
def nvidia(tmp_path: Path) -> Path:
    """As NVIDIA's packages leave it."""
    folder = tmp_path / "nvidia" / "cu13"
    for part in ("bin", "include", "nvvm", "lib"):
        (folder / part).mkdir(parents=True)
    for library in ("libcudart.so.13", "libcudart_static.a"):
        (folder / "lib" / library).touch()
    return folder


def test_a_linker_finds_the_libraries_by_their_names(nvidia: Path, tmp_path: Path) -> None:
    made = tmp_path / "cuda"
    for _ in range(2):  # whatever is there already
        toolkit.make(made, nvidia)
    assert (made / "lib64" / "libcudart.so").resolve() == nvidia / "lib" / "libcudart.so.13"
    assert (made / "lib" / "libcudart_static.a").resolve() == nvidia / "lib" / "libcudart_static.a"
    assert (made / "bin").resolve() == nvidia / "bin"
    source = "int cuInit(unsigned);\nint main() { return cuInit(0); }\n"
    search = {**os.environ, "LIBRARY_PATH": str(made / "lib64" / "stubs")}
    command = ["cc", "-x", "c", "-", "-lcuda", "-o", str(tmp_path / "program")]
    subprocess.run(command, input=source, text=True, env=search, check=True)


def test_packages_that_lie_otherwise_are_named(nvidia: Path, tmp_path: Path) -> None:
    (nvidia / "nvvm").rmdir()
    with pytest.raises(InstallationError, match=r"/nvidia/cu13/nvvm is missing"):
        toolkit.make(tmp_path / "cuda", nvidia)
