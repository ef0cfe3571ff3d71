"""The environment variables of the processes that serve on GPUs; they must be set before those start."""

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
    """What the template needs beside `current` so that its children can serve on a GPU.

    Imports neither torch nor SGLang, since the gateway calls it.

    Raises:
        PoolError: a package that the engine needs on a GPU is missing.
    """
    if importlib.util.find_spec("kvcached") is None:
        raise PoolError("the engine sglang needs the package kvcached on a GPU; run `make gpu`")
    preload = [str(saver_library()), *_cuda_runtime(), *filter(None, [current.get("LD_PRELOAD")])]
    return {
        # torch_memory_saver takes over cudaMalloc, which it can only from a process's start, and ahead of who has it.
        "LD_PRELOAD": ":".join(preload),
        # kvcached patches SGLang while it is imported, if told so.
        "ENABLE_KVCACHED": "true",
        "KVCACHED_AUTOPATCH": "1",
        # It would keep up to ten pages mapped ahead: 1.3 GB of an 8B model, in each worker.
        "KVCACHED_PAGE_PREALLOC_ENABLED": current.get("KVCACHED_PAGE_PREALLOC_ENABLED", "false"),
        # The worker's KV limit bounds the prefix cache, which shrinks when the limit does.
        "KVCACHED_MAX_CACHED_TOKENS": current.get("KVCACHED_MAX_CACHED_TOKENS", "-1"),
        "KVCACHED_LOG_LEVEL": current.get("KVCACHED_LOG_LEVEL", "WARNING"),
        # Left out, torch.compile would set it in the middle of a process's life, to where no kernel is compiled yet.
        "TRITON_CACHE_DIR": str(kernel_folder(current)),
        # Where kernels' compilers are; a toolkit of the user's own comes first.
        **kernel_tools(current),
        # A rank says itself whose client it is. Nobody else is anybody's, and not by chance another's.
        PIPES: NO_DAEMON,
        # As NVML counts.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # The template forks, and a fork copies no thread.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # pyarrow, which pandas imports where it is installed, starts one for its allocator.
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }


def kernel_tools(current: Mapping[str, str]) -> dict[str, str]:
    """The CUDA toolkit that `make gpu` made, and ninja beside this Python, which need not be on PATH."""
    scripts, toolkit = str(Path(sys.executable).parent), Path(sys.prefix, "cuda")
    found = {"PATH": f"{current.get('PATH', os.defpath)}:{scripts}"}
    if toolkit.exists() and not (current.get("CUDA_HOME") or current.get("CUDA_PATH")):
        found["CUDA_HOME"] = str(toolkit)
    return found


def kernel_folder(current: Mapping[str, str]) -> Path:
    """Where Triton keeps what it compiles: its own default, unless the user says otherwise."""
    if folder := current.get("TRITON_CACHE_DIR"):
        return Path(folder)
    return Path(current.get("TRITON_HOME") or Path.home(), ".triton", "cache")


def saver_library() -> Path:
    """The build of torch_memory_saver for torch's CUDA. Raises: PoolError."""
    found = importlib.util.find_spec(_SAVER)
    if found is None or found.origin is None:
        raise PoolError(f"the engine sglang needs the package {_SAVER} on a GPU; run `make gpu`")
    folder, pattern = Path(found.origin).parent, f"{_SAVER}_hook_mode_preload_cu{torch_cuda().partition('.')[0]}.*so"
    libraries = [*folder.glob(pattern), *folder.parent.glob(pattern)]
    if len(libraries) != 1:
        raise PoolError(f"{_SAVER}: expected one {pattern} in {folder.parent}, found {len(libraries)}")
    return libraries[0]


def _cuda_runtime() -> list[str]:
    """Torch's libcudart, which the memory saver wants before torch comes; in site-packages no loader finds it."""
    found, major = importlib.util.find_spec("nvidia"), torch_cuda().partition(".")[0]
    folders = found.submodule_search_locations if found and found.submodule_search_locations else ()
    libraries = (Path(folder, f"cu{major}", "lib", f"libcudart.so.{major}") for folder in folders)
    return [str(library) for library in libraries if library.exists()][:1]


def torch_cuda() -> str:
    """Such as `13.0`: as torch/version.py has it, since importing torch would take seconds. Raises: PoolError."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise PoolError("torch is not installed")
    version = Path(found.submodule_search_locations[0], "version.py").read_text()
    matched = re.search(r"^cuda[^=\n]*= '(\d+\.\d+)", version, re.MULTILINE)
    if matched is None:
        raise PoolError("this build of torch has no CUDA, so the engine sglang cannot serve on a GPU")
    return matched[1]
