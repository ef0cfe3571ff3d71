"""The command: everything that is slow at the same time, and then row by row."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec

from config.errors import PoolError
from enginepool.host.gpu_environment import gpu_environment
from gateway.doctor import driver, registry
from gateway.doctor.finding import Finding, failed
from gateway.doctor.gpus import check_gpus
from gateway.doctor.kernels import check_compilers, check_kernel_folders
from gateway.doctor.limits import check_limits
from gateway.doctor.links import check_links, check_nvlink
from gateway.doctor.loaded import check_loaded
from gateway.doctor.memory import check_memory
from gateway.doctor.mps import check_mps
from gateway.doctor.nvml import Facts
from gateway.doctor.packages import check_packages, check_python
from gateway.doctor.probe import Answer, ask
from gateway.doctor.report import render, to_json

NVML_PATIENCE = 20.0
"""Seconds; it takes a tenth of one, or some where the driver is loaded first."""
LINK_PATIENCE = 60.0
"""Seconds, and 2 more for each GPU: most of it torch's import and CUDA's start."""
PATCH_PATIENCE = 120.0
"""Seconds: SGLang's import, which may have to be read from a slow disk and compiled to bytecode."""


def run(path: Path | None, as_json: bool) -> int:
    """Print what was found. Exit status: 1 if something that is needed is not as it must be."""
    findings = list(examine(path))
    print(to_json(findings) if as_json else render(findings))
    return int(any(finding.status == "failed" for finding in findings))


def examine(path: Path | None) -> Iterator[Finding]:
    """All checks; with a registry at `path`, of what that needs."""
    wanted, said = registry.read(path) if path else (None, [])
    cuda, on_the_bus = driver.driver_cuda(), driver.nvidia_gpus_on_the_bus()
    gpu = registry.wants_gpus(wanted) if wanted else cuda is not None or on_the_bus > 0
    with ThreadPoolExecutor() as threads:
        gpus = _Gpus(threads) if gpu and cuda is not None else None
        yield from said
        yield check_python()
        yield from check_packages(gpu or _is_for_gpus())
        yield _as_needed(gpu, driver.check_driver(cuda, driver.driver_release(), on_the_bus))
        yield from gpus.findings() if gpus else ()
        yield from check_mps(os.environ) if gpu else ()
        yield from _check_kernels() if gpu or _is_for_gpus() else ()
        yield from check_memory()
        yield from check_limits(registry.open_files(wanted) if wanted else 0)
        yield from registry.check_registry(wanted, gpus.count if gpus else None) if wanted else ()


class _Gpus:
    """What only processes with a time limit may find out. They start at once, and `findings` waits for them."""

    def __init__(self, threads: Executor) -> None:
        answer = ask("gateway.doctor.nvml", seconds=NVML_PATIENCE)
        self._failure = answer.failure
        self._facts = msgspec.convert(answer.data, Facts) if not answer.failure else Facts(())
        self.count = len(self._facts.gpus)
        # A driver that has not answered NVML will not answer them.
        self._links = threads.submit(_ask_links, self.count) if self.count else None
        self._loaded = threads.submit(_ask_loaded) if self.count else None

    def findings(self) -> Iterator[Finding]:
        if self._failure:
            fix = "see what nvidia-smi says; after an update of the driver, reboot"
            yield failed("GPUs", f"NVML: {self._failure}", fix)
            return
        yield from check_gpus(self._facts)
        if self._links:
            yield from check_links(self._facts, self._links.result())
        yield from check_nvlink(self._facts)
        if self._loaded and (answer := self._loaded.result()):
            yield from check_loaded(answer)


def _ask_links(count: int) -> Answer:
    devices = [f"cuda:{number}" for number in range(count)]
    return ask("enginepool.host.link_rate", *devices, seconds=LINK_PATIENCE + 2 * count)


def _ask_loaded() -> Answer | None:
    """None if what should load is not there, which rows about packages say."""
    try:
        environment = gpu_environment(os.environ)
    except PoolError:
        return None
    return ask("gateway.doctor.patches", seconds=PATCH_PATIENCE, environment=environment)


def _is_for_gpus() -> bool:
    """Whether this environment is, say in an image that is built where there is no GPU."""
    return importlib.util.find_spec("kvcached") is not None


def _check_kernels() -> Iterator[Finding]:
    yield from check_compilers(os.environ)
    yield from check_kernel_folders(os.environ)


def _as_needed(gpu: bool, finding: Finding) -> Finding:
    return replace(finding, status="failed") if gpu and finding.status == "warning" else finding
