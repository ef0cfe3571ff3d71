"""Environment variables for processes that serve on GPUs, to be set before these processes start."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from config.errors import PoolError
from enginepool.mps.control import NO_DAEMON, PIPES

_SAVER = "torch_memory_saver"


def gpu_environment(current: Mapping[str, str]) -> dict[str, str]:
    """Variables that the template needs in addition to `current` so that its children can serve on a GPU.

    Imports neither torch nor SGLang, because it is called in the gateway.
    """
    if importlib.util.find_spec("kvcached") is None:
        raise PoolError("the engine sglang needs the package kvcached on a GPU; run `make gpu`")
    preload = [str(saver_library()), *_cuda_runtime(), *filter(None, [current.get("LD_PRELOAD")])]
    return {
        # torch_memory_saver overrides cudaMalloc, so it must be preloaded, ahead of the library that defines it.
        "LD_PRELOAD": ":".join(preload),
        # Makes kvcached patch SGLang on import.
        "ENABLE_KVCACHED": "true",
        "KVCACHED_AUTOPATCH": "1",
        # Otherwise kvcached keeps up to ten pages mapped in advance: 1.3 GB for an 8B model, in each worker.
        "KVCACHED_PAGE_PREALLOC_ENABLED": current.get("KVCACHED_PAGE_PREALLOC_ENABLED", "false"),
        # No limit of its own: the worker's KV limit bounds the prefix cache, which shrinks with it.
        "KVCACHED_MAX_CACHED_TOKENS": current.get("KVCACHED_MAX_CACHED_TOKENS", "-1"),
        "KVCACHED_LOG_LEVEL": current.get("KVCACHED_LOG_LEVEL", "WARNING"),
        # If unset, torch.compile would set it in mid-process, to a folder without any compiled kernels.
        "TRITON_CACHE_DIR": str(kernel_folder(current)),
        # The tools that compile kernels; a toolkit set by the user takes precedence.
        **kernel_tools(current),
        # A rank chooses its MPS daemon itself; all other processes must not become clients of any daemon by accident.
        PIPES: NO_DAEMON,
        # The order in which NVML numbers GPUs.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # No threads in the template: it forks, and a fork does not copy threads.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # pandas imports pyarrow if installed, whose allocator would start a thread.
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }


def kernel_tools(current: Mapping[str, str]) -> dict[str, str]:
    """Variables for the CUDA toolkit built by `make gpu`, and for ninja next to this Python, which may not be on
    PATH."""
    scripts, toolkit = str(Path(sys.executable).parent), Path(sys.prefix, "cuda")
    found = {"PATH": f"{current.get('PATH', os.defpath)}:{scripts}"}
    if toolkit.exists() and not (current.get("CUDA_HOME") or current.get("CUDA_PATH")):
        found["CUDA_HOME"] = str(toolkit)
    return found


def kernel_folder(current: Mapping[str, str]) -> Path:
    """The folder of Triton's compiled kernels: Triton's default, unless the user set another."""
    if folder := current.get("TRITON_CACHE_DIR"):
        return Path(folder)
    return Path(current.get("TRITON_HOME") or Path.home(), ".triton", "cache")


def saver_library() -> Path:
    """The torch_memory_saver library built for torch's CUDA version. Raises: PoolError."""
    found = importlib.util.find_spec(_SAVER)
    if found is None or found.origin is None:
        raise PoolError(f"the engine sglang needs the package {_SAVER} on a GPU; run `make gpu`")
    folder, pattern = Path(found.origin).parent, f"{_SAVER}_hook_mode_preload_cu{torch_cuda().partition('.')[0]}.*so"
    libraries = [*folder.glob(pattern), *folder.parent.glob(pattern)]
    if len(libraries) != 1:
        raise PoolError(f"{_SAVER}: expected one {pattern} in {folder.parent}, found {len(libraries)}")
    return libraries[0]


def _cuda_runtime() -> list[str]:
    """Torch's libcudart, which the memory saver needs before torch is loaded; in site-packages the dynamic loader does
    not find it."""
    found, major = importlib.util.find_spec("nvidia"), torch_cuda().partition(".")[0]
    folders = found.submodule_search_locations if found and found.submodule_search_locations else ()
    libraries = (Path(folder, f"cu{major}", "lib", f"libcudart.so.{major}") for folder in folders)
    return [str(library) for library in libraries if library.exists()][:1]


def torch_cuda() -> str:
    """Torch's CUDA version, such as `13.0`, read from torch/version.py because importing torch takes seconds.

    Raises:
        PoolError: torch is missing or was built without CUDA.
    """
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise PoolError("torch is not installed")
    version = Path(found.submodule_search_locations[0], "version.py").read_text()
    matched = re.search(r"^cuda[^=\n]*= '(\d+\.\d+)", version, re.MULTILINE)
    if matched is None:
        raise PoolError("this build of torch has no CUDA, so the engine sglang cannot serve on a GPU")
    return matched[1]
