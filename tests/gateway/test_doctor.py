"""`prism doctor`: on this machine as it is, and on others as NVML, the driver and the kernel would describe them."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pynvml
import pytest
import yaml
from msgspec.structs import replace as changed

from bench.subjects.processes import PROJECT
from enginepool import tested
from enginepool.host import host_memory
from gateway.demo_models import NAMES
from gateway.doctor import command, driver, limits, memory, nvml, packages
from gateway.doctor.compilers import check_cuda_compiler, check_cxx, check_ninja
from gateway.doctor.driver import check_driver, driver_cuda
from gateway.doctor.finding import Finding
from gateway.doctor.gpus import check_gpus
from gateway.doctor.kernels import check_kernel_folders
from gateway.doctor.links import check_links, check_nvlink
from gateway.doctor.loaded import check_loaded
from gateway.doctor.mps import CONTROL, check_mps
from gateway.doctor.packages import TESTED, check_packages
from gateway.doctor.probe import Answer, ask
from gateway.doctor.report import render

GPU = nvml.Gpu("NVIDIA H200", 140 * 2**30, 2**30, 0, False, (5, 16), (5, 16), 18, ())


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway.cli", "doctor", *arguments]
    return subprocess.run(command, cwd=PROJECT, env={**os.environ, **environment}, text=True, capture_output=True)


def the_only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def registry_file(folder: Path, **changes: Any) -> Path:
    pool = {"engine": "simulated", **changes.pop("pool", {})}
    path = folder / "registry.yaml"
    path.write_text(yaml.dump({"pool": pool, "models": [{"name": "a"}], **changes}))
    return path


# The command, on this machine

without_a_driver = pytest.mark.skipif(driver_cuda() is not None, reason="this machine has NVIDIA's driver")


@without_a_driver
def test_a_machine_without_a_gpu_is_fit_for_the_cpu_and_is_told_so() -> None:
    done = doctor()
    assert done.returncode == 0, done.stdout
    assert "serving on the CPU only" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("fit to serve on the CPU only: ")
    assert done.stderr == ""


@without_a_driver
def test_a_registry_for_gpus_finds_all_that_they_would_need_missing(tmp_path: Path, demo_folder: Path) -> None:
    models = [{"name": "a", "path": str(demo_folder / NAMES[0])}]
    path = registry_file(tmp_path, pool={"engine": "sglang", "devices": ["cuda:0"]}, models=models)
    done = doctor(str(path), "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert {"NVIDIA driver", "kvcached", "torch's CUDA"} <= {
        row["check"] for row in told["findings"] if row["status"] == "failed"
    }


def test_a_registry_for_the_cpu_needs_no_gpu(tmp_path: Path, demo_folder: Path) -> None:
    models = [{"name": "a", "path": str(demo_folder / NAMES[0])}]
    done = doctor(str(registry_file(tmp_path, pool={"engine": "transformers"}, models=models)), "--json")
    assert done.returncode == 0, done.stdout
    rows = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert rows["registry"]["text"].endswith("1 models, engine transformers")
    assert rows["host_memory"]["status"] == "ok"
    assert rows["kernel"]["text"].startswith("Linux ")


def test_a_registrys_mistakes_and_a_budget_above_the_machines_memory_are_told_at_once(tmp_path: Path) -> None:
    wrong = registry_file(tmp_path, pool={"workers": 2})
    done = doctor(str(wrong))
    assert done.returncode == 1
    assert f"failed   registry            {wrong}:" in done.stdout
    done = doctor(str(registry_file(tmp_path, weight_store={"host_memory": "1000TiB"})))
    assert done.returncode == 1
    assert "1000.0 TiB for weights; there are " in done.stdout


def test_few_open_files_are_a_warning_with_the_number_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1024, hard))
    finding = next(limits.check_limits(clients=30_000))
    assert finding.status == "warning"
    assert "ulimit -n 30000" in finding.fix


def test_a_containers_limit_is_what_counts_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text(f"{2**30}\n")
    (tmp_path / "memory.current").write_text(f"{2**28}\n")
    monkeypatch.setattr(host_memory, "CGROUPS", tmp_path)
    assert "768.0 MiB available of 1.0 GiB (a cgroup's limit; " in next(memory.check_memory()).text


# Processes that may never answer


@pytest.fixture
def module(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Writes the module `asked`, and returns the environment in which it is found."""

    def write(code: str) -> dict[str, str]:
        (tmp_path / "asked.py").write_text(code)
        return {"PYTHONPATH": str(tmp_path)}

    return write


def test_who_does_not_answer_is_given_up_with_all_that_it_started(module: Callable[[str], dict[str, str]]) -> None:
    endless = "import subprocess, time; subprocess.Popen(['sleep', 'infinity']); time.sleep(3600)"
    assert ask("asked", seconds=1, environment=module(endless)).failure == "no answer within 1 s"


def test_an_answer_is_the_last_line_and_a_failure_too(module: Callable[[str], dict[str, str]]) -> None:
    assert ask("asked", seconds=60, environment=module("print('noise'); print('{\"a\": 1}')")).data == {"a": 1}
    assert ask("asked", seconds=60, environment=module("1 / 0")).failure == "ZeroDivisionError: division by zero"
    assert ask("asked", seconds=60, environment=module("import os; os._exit(9)")).failure == "exit status 9"
    assert ask("asked", seconds=60, environment=module("print('hello')")).failure == "it answered 'hello\\n'"


# GPUs


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML of two GPUs: a handle is the GPU's number, and number 1 has no NVLink and tells nothing of its PCIe."""

    def unless_first(value: Any) -> Callable[..., Any]:
        def tell(handle: int, *_: Any) -> Any:
            if handle == 1:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return value

        return tell

    answers = {
        "Init": lambda: None,
        "Shutdown": lambda: None,
        "DeviceGetCount": lambda: 2,
        "DeviceGetHandleByIndex": lambda index: index,
        "DeviceGetName": lambda handle: "NVIDIA H200",
        "DeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=140 * 2**30, used=2**30),
        "DeviceGetComputeMode": lambda handle: 0,
        "DeviceGetMigMode": unless_first([0, 0]),
        "DeviceGetCurrPcieLinkGeneration": unless_first(1),
        "DeviceGetCurrPcieLinkWidth": unless_first(16),
        "DeviceGetMaxPcieLinkGeneration": unless_first(5),
        "DeviceGetMaxPcieLinkWidth": unless_first(16),
        "DeviceGetNvLinkState": unless_first(1),
        "DeviceGetP2PStatus": lambda handle, other, index: 1,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, f"nvml{name}", answer)


def test_what_nvml_does_not_tell_of_a_gpu_is_left_open(two_gpus: None) -> None:
    first, second = nvml.read({}).gpus
    links = pynvml.NVML_NVLINK_MAX_LINKS
    assert first == nvml.Gpu("NVIDIA H200", 140 * 2**30, 2**30, 0, False, (1, 16), (5, 16), links, (1,))
    assert second == nvml.Gpu("NVIDIA H200", 140 * 2**30, 2**30, 0, None, None, None, 0, (0,))


def test_only_visible_gpus_are_looked_at_and_in_their_order(two_gpus: None) -> None:
    (only,) = nvml.read({"CUDA_VISIBLE_DEVICES": "1"}).gpus
    assert only.nvlinks == 0
    assert nvml.read({"CUDA_VISIBLE_DEVICES": ""}).gpus == ()


@pytest.mark.parametrize(
    ("cuda", "release", "on_the_bus", "status", "text"),
    [
        ((13, 0), "580.95.05", 1, "ok", "driver 580.95.05, CUDA 13.0"),
        ((13, 2), "600.10", 8, "ok", "driver 600.10, CUDA 13.2"),
        ((12, 8), "570.86.10", 1, "failed", "driver 570.86.10, CUDA 12.8; torch has CUDA 13.0"),
        ((13, 0), "", 1, "failed", "its kernel module is not loaded"),
        (None, "", 2, "failed", "though there are NVIDIA GPUs: 2"),
        (None, "", 0, "warning", "serving on the CPU only"),
    ],
)
def test_the_driver_must_know_torchs_cuda(
    cuda: tuple[int, int] | None, release: str, on_the_bus: int, status: str, text: str
) -> None:
    finding = check_driver(cuda, release, on_the_bus)
    assert finding.status == status
    assert text in finding.text
    assert bool(finding.fix) == (status != "ok")


def test_a_gpu_that_not_everybody_may_use_is_told_with_the_command_that_changes_it() -> None:
    facts = nvml.Facts((GPU, changed(GPU, compute_mode=3), changed(GPU, compute_mode=2), changed(GPU, mig=True)))
    found = list(check_gpus(facts))
    assert [finding.text for finding in found if finding.status == "ok"] == [
        "NVIDIA H200, 140.0 GiB, of which 1.0 GiB are in use"
    ] * 4
    bad = {finding.check: finding for finding in found if finding.status != "ok"}
    assert {check: finding.status for check, finding in bad.items()} == {
        "cuda:1": "failed",
        "cuda:2": "failed",
        "cuda:3": "warning",
    }
    assert "nvidia-smi --compute-mode=DEFAULT" in bad["cuda:1"].fix


def test_no_visible_gpu_is_a_fault() -> None:
    assert the_only(check_gpus(nvml.Facts(()))).status == "failed"


def test_a_link_far_below_what_its_lanes_could_do_is_slow() -> None:
    facts = nvml.Facts((GPU, GPU, changed(GPU, link=(1, 8), best_link=(5, 8)), changed(GPU, link=None, best_link=None)))
    rates = {"cuda:0": {"gbps": 55.4}, "cuda:1": {"gbps": 12.0}, "cuda:2": {"gbps": 28.0}, "cuda:3": {"gbps": 400.0}}
    first, second, third, fourth = check_links(facts, Answer(rates))
    assert (first.status, first.text) == ("ok", "PCIe gen 5 x16; 55.4 GB/s measured")
    assert (second.status, second.text) == ("warning", "PCIe gen 5 x16; 12.0 GB/s measured of 63 nominal")
    assert (third.status, third.text) == ("ok", "PCIe gen 1 x8 (gen 5 x8 at best); 28.0 GB/s measured")
    assert (fourth.status, fourth.text) == ("ok", "PCIe of unknown speed; 400.0 GB/s measured")


def test_a_link_that_could_not_be_measured_says_why() -> None:
    full, silent = {"cuda:0": {"error": "CUDA out of memory."}}, Answer(failure="no answer within 62 s")
    assert "not measured: CUDA out of memory." in the_only(check_links(nvml.Facts((GPU,)), Answer(full))).text
    assert "not measured: no answer within 62 s" in the_only(check_links(nvml.Facts((GPU,)), silent)).text


def test_gpus_without_nvlink_between_them_are_named() -> None:
    assert list(check_nvlink(nvml.Facts((GPU,)))) == []
    assert the_only(check_nvlink(nvml.Facts((GPU, GPU)))).text == "between all 2 GPUs, 18 links each"
    apart = nvml.Facts((changed(GPU, unreachable=(2,)), GPU, changed(GPU, unreachable=(0,))))
    finding = the_only(check_nvlink(apart))
    assert (finding.status, finding.text) == ("warning", "none between cuda:0 and cuda:2")


def test_what_must_be_loaded_from_a_processs_start_is_told_apart() -> None:
    kvcached, saver = check_loaded(Answer({"kvcached": "kvcached has not patched SGLang", "saver": ""}))
    assert (kvcached.status, kvcached.text) == ("failed", "kvcached has not patched SGLang")
    assert saver.status == "ok"
    assert [finding.status for finding in check_loaded(Answer(failure="no answer"))] == ["failed", "failed"]


def test_somebodys_mps_daemon_is_named_while_it_lives(tmp_path: Path) -> None:
    environment = {"CUDA_MPS_PIPE_DIRECTORY": str(tmp_path), "PATH": str(tmp_path)}
    sleep = shutil.which("sleep")
    assert sleep is not None
    shutil.copy(sleep, tmp_path / CONTROL)
    with subprocess.Popen([tmp_path / CONTROL, "infinity"]) as daemon:
        (tmp_path / f"{CONTROL}.pid").write_text(f"{daemon.pid}\n")
        control, running = check_mps(environment)
        daemon.kill()
    assert (control.status, control.text) == ("ok", str(tmp_path / CONTROL))
    assert running.status == "warning"
    assert f"one runs (pid {daemon.pid} of {psutil.Process().username()})" in running.text
    assert [finding.status for finding in check_mps(environment)] == ["ok", "ok"]


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Answer]], dict[str, Finding]]:
    """All checks on a machine with a driver, whose processes answer as told."""

    def examine(answers: dict[str, Answer]) -> dict[str, Finding]:
        monkeypatch.setattr(driver, "driver_cuda", lambda: (13, 0))
        monkeypatch.setattr(driver, "driver_release", lambda: "580.95.05")
        monkeypatch.setattr(command, "gpu_environment", lambda environment: {})
        monkeypatch.setattr(command, "ask", lambda module, *arguments, **_: answers[module])
        return {finding.check: finding for finding in command.examine(None)}

    return examine


def test_a_machine_with_gpus_is_looked_at_for_all_that_they_take(
    with_gpus: Callable[[dict[str, Answer]], dict[str, Finding]],
) -> None:
    facts = json.loads(msgspec.json.encode(nvml.Facts((GPU, GPU))))
    rates = {"cuda:0": {"gbps": 55.0}, "cuda:1": {"gbps": 54.0}}
    rows = with_gpus(
        {
            "gateway.doctor.nvml": Answer(facts),
            "enginepool.host.link_rate": Answer(rates),
            "gateway.doctor.patches": Answer({"kvcached": "", "saver": ""}),
        }
    )
    fit = {
        "NVIDIA driver",
        "cuda:0",
        "cuda:1",
        "cuda:0 link",
        "cuda:1 link",
        "NVLink",
        "kvcached loaded",
        "saver loaded",
    }
    assert {check for check in fit if rows[check].status != "ok"} == set()
    assert rows["cuda:1 link"].text == "PCIe gen 5 x16; 54.0 GB/s measured"
    assert {"MPS", "kernels' folders", "host memory", "open files"} <= rows.keys()


def test_a_driver_that_does_not_answer_is_asked_nothing_more(
    with_gpus: Callable[[dict[str, Answer]], dict[str, Finding]],
) -> None:
    rows = with_gpus({"gateway.doctor.nvml": Answer(failure="no answer within 20 s")})
    assert (rows["GPUs"].status, rows["GPUs"].text) == ("failed", "NVML: no answer within 20 s")
    assert not any(check.startswith("cuda:") for check in rows)


# What serving on a GPU is made of


def test_releases_are_compared_with_those_tested() -> None:
    rows = {finding.check: finding for finding in check_packages(gpu=False)}
    assert rows.keys() == TESTED.keys()
    assert rows["transformers"] == Finding("transformers", "ok", tested.TRANSFORMERS[0])


def test_another_release_is_refused_where_prism_adapts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "version", lambda name: "99.0+cu130")
    rows = {finding.check: finding for finding in check_packages(gpu=False)}
    assert {check: finding.status for check, finding in rows.items()} == {
        "torch": "warning",
        "transformers": "warning",
        "sglang": "failed",
        "kvcached": "failed",
        "torch_memory_saver": "warning",
    }
    assert rows["kvcached"].text == "99.0+cu130; tested: 0.1.6"


def test_compilers_are_tried_and_not_only_found(tmp_path: Path) -> None:
    assert check_cxx(os.environ).status == "ok"
    assert check_cxx({"CXX": "no-such-compiler"}).text == "there is no no-such-compiler"
    broken = script(tmp_path / "broken-c++", "exit 1")
    assert "cannot compile a program of one line" in check_cxx({"CXX": str(broken)}).text


def test_nvcc_must_be_of_torchs_cuda_and_have_its_headers(tmp_path: Path) -> None:
    environment = {"CUDA_HOME": str(tmp_path)}
    assert "no nvcc" in check_cuda_compiler(environment, 13).text
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'")
    assert "has no include/cuda_runtime.h" in check_cuda_compiler(environment, 13).text
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert check_cuda_compiler(environment, 13) == Finding("CUDA compiler", "ok", f"nvcc 13.0 in {tmp_path}")
    assert "has CUDA 13.0, torch has 14" in check_cuda_compiler(environment, 14).text


def test_ninja_is_looked_for_where_kernels_are_built(tmp_path: Path) -> None:
    assert check_ninja({"PATH": str(tmp_path)}).status == "failed"
    script(tmp_path / "ninja", "exit 0")
    assert check_ninja({"PATH": str(tmp_path)}).text == str(tmp_path / "ninja")


def test_kernels_need_folders_that_can_be_written(tmp_path: Path) -> None:
    fit = the_only(check_kernel_folders({"HOME": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "triton")}))
    assert fit.status == "ok"
    assert str(tmp_path / "triton") in fit.text
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "kernels"
    refused = the_only(check_kernel_folders({"HOME": str(tmp_path), "TRITON_CACHE_DIR": str(folder)}))
    assert (refused.status, refused.text) == ("failed", f"{folder} cannot be written")


def test_the_table_says_what_to_do_under_each_row_that_is_not_ok() -> None:
    rows = [Finding("disk", "ok", "enough"), Finding("a driver", "failed", "none", "install one")]
    assert render(rows).splitlines() == [
        "ok       disk      enough",
        "failed   a driver  none",
        "                   -> install one",
        "",
        "not fit to serve: 2 checks, 1 failed, 0 with a warning",
    ]


def script(path: Path, command: str) -> Path:
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return path
