"""One-time work of the template process that saves every worker and rank from doing it."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import torch

from enginepool.engines.sglang import upstream
from enginepool.engines.sglang.gpu.imports import answered_by_nvml


def warm(gpu: bool) -> None:
    """Import SGLang with all its models, which takes seconds. Leaves no thread, because the caller is about to fork.

    With `gpu`, import what serving on GPUs needs; CUDA is not initialised.

    Raises:
        EngineError: SGLang is missing or of an untested version.
    """
    torch.set_num_threads(1)  # with more, a child would have a second thread before it forks its rank
    with answered_by_nvml() if gpu else nullcontext():
        upstream.prepare(gpu)
        if gpu:
            _import_for_gpu()
        import enginepool.engines.sglang.front.layer
        import enginepool.engines.sglang.loading.weights
        import enginepool.engines.sglang.rank.main
        import enginepool.engines.sglang.rank.stored  # noqa: F401
        from enginepool.engines.sglang.rank import grammar_errors, kv_reservation, logprobs, penalties, quarantine

        for adaptation in (kv_reservation, grammar_errors, logprobs, penalties, quarantine):
            adaptation.adapt()

    # Exempts all current objects from collection; otherwise a child's first collection would copy their pages.
    gc.collect()
    gc.freeze()


def _import_for_gpu() -> None:
    from enginepool.engines.sglang.gpu import upstream as upstream_gpu

    upstream_gpu.check_kvcached()
    upstream_gpu.adapt()
    upstream_gpu.identify_compilers()
    import enginepool.engines.sglang.gpu.device  # noqa: F401
