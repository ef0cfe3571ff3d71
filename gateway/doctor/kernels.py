"""Where kernels are kept that were compiled on this machine, and what compiles them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from config.errors import PoolError
from config.units import format_size
from enginepool.host.gpu_environment import kernel_folder, kernel_tools, torch_cuda
from gateway.doctor.compilers import check_cuda_compiler, check_cxx, check_ninja, check_python_headers
from gateway.doctor.finding import Finding, failed, ok, warning

ROOM = 2 * 2**30
"""Bytes. Three models' kernels took 0.3 GiB."""


def check_compilers(environment: Mapping[str, str]) -> Iterator[Finding]:
    """As the processes that serve would find them."""
    serving = {**environment, **kernel_tools(environment)}
    yield check_cxx(serving)
    yield check_python_headers()
    try:
        yield check_cuda_compiler(serving, int(torch_cuda().partition(".")[0]))
    except PoolError:
        return  # said of the packages already
    yield check_ninja(serving)


def check_kernel_folders(environment: Mapping[str, str]) -> Iterator[Finding]:
    """One row for all that are fit, and one for each that is not."""
    folders = kernel_folders(environment)
    faults = [fault for fault in map(_fault, folders) if fault]
    yield from faults or [ok("kernels' folders", ", ".join(map(str, folders)))]


def kernel_folders(environment: Mapping[str, str]) -> tuple[Path, ...]:
    """Triton's, SGLang's and flashinfer's."""
    cache = Path(environment.get("HOME") or Path.home(), ".cache")
    return (
        kernel_folder(environment),
        Path(environment.get("TVM_FFI_CACHE_DIR") or cache / "tvm-ffi"),
        Path(environment.get("FLASHINFER_WORKSPACE_BASE") or cache.parent, ".cache", "flashinfer"),
    )


def _fault(folder: Path) -> Finding | None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    fix = "kernels are compiled anew at each start otherwise, or not at all; give a container this folder, lasting"
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        return failed("kernels' folders", f"{folder} cannot be written", fix)
    free = shutil.disk_usage(there).free
    if free < ROOM:
        return warning(
            "kernels' folders", f"{format_size(free)} free for {folder}; {format_size(ROOM)} are wanted", fix
        )
    return None
