"""The packages that serve on a GPU: there, and of a release that was tested. None is imported."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from config.errors import PoolError
from enginepool import tested
from enginepool.host.gpu_environment import saver_library, torch_cuda
from gateway.doctor.finding import Finding, Status, failed, ok

TESTED: Mapping[str, tuple[tuple[str, ...], Status]] = {
    "torch": (tested.TORCH, "warning"),
    "transformers": (tested.TRANSFORMERS, "warning"),
    "sglang": (tested.SGLANG, "failed"),
    "kvcached": (tested.KVCACHED, "failed"),
    "torch_memory_saver": (tested.TORCH_MEMORY_SAVER, "warning"),
}
"""Releases, and how bad another is: what Prism adapts from outside refuses one that it was not written for."""
_FOR_GPUS = ("sglang", "kvcached", "torch_memory_saver")


def check_python() -> Finding:
    return ok("Python", f"{sys.version.split()[0]}, {sys.executable}")


def check_packages(gpu: bool) -> Iterator[Finding]:
    """With `gpu`, serving on one is wanted, and what is missing for it a fault."""
    for name, (releases, otherwise) in TESTED.items():
        yield _release(name, releases, otherwise, needed=gpu or name not in _FOR_GPUS)
    if gpu:
        yield _torch_cuda()
        yield _saver()


def _release(name: str, releases: tuple[str, ...], otherwise: Status, needed: bool) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "failed" if needed else "warning", "not installed", "`make gpu` installs it")
    if found.partition("+")[0] in releases:
        return ok(name, found)
    return Finding(name, otherwise, f"{found}; tested: {', '.join(releases)}", "`make gpu` installs the one tested")


def _torch_cuda() -> Finding:
    try:
        cuda = torch_cuda()
    except PoolError as error:
        return failed("torch's CUDA", str(error), "`make gpu` installs one that has it")
    return ok("torch's CUDA", cuda)


def _saver() -> Finding:
    try:
        return ok("memory saver", str(saver_library()))
    except PoolError as error:
        return failed("memory saver", str(error), "`make gpu` installs it; parked models need it to give memory back")
