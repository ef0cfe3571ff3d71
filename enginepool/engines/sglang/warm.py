"""What the template process does once, so that no worker and no rank has to."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import torch

from enginepool.engines.sglang import upstream
from enginepool.engines.sglang.gpu_imports import answered_by_nvml


def warm(gpu: bool) -> None:
    """Import SGLang with all its models, some seconds. Leaves no thread: the caller is about to fork.

    With `gpu`, for serving on GPUs; the CUDA driver stays untouched.

    Raises:
        EngineError: SGLang is missing, or of a version that was not tested.
    """
    torch.set_num_threads(1)  # with more, a child would have a second thread before it forks its rank
    with answered_by_nvml() if gpu else nullcontext():
        upstream.prepare(gpu)
        if gpu:
            _import_for_gpu()
        import enginepool.engines.sglang.layer
        import enginepool.engines.sglang.rank
        import enginepool.engines.sglang.stored
        import enginepool.engines.sglang.weights  # noqa: F401

    # What is alive now stays so: without this, a child's first collection would copy its pages.
    gc.collect()
    gc.freeze()


def _import_for_gpu() -> None:
    from enginepool.engines.sglang import upstream_gpu

    upstream_gpu.check_kvcached()
    upstream_gpu.adapt()
    import enginepool.engines.sglang.device_gpu  # noqa: F401
