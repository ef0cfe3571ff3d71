"""Imports modules and computes values that a rank's first build would otherwise wait for.

This happens in the rank and not in the template, because these imports may initialise CUDA, after which the template
could not fork.
"""

from __future__ import annotations

import importlib
from contextlib import suppress

from enginepool.engines.sglang import arguments

_MODULES = (
    "sglang.srt.arg_groups.kimi_k3_hook",
    "sglang.srt.arg_groups.overrides",
    "sglang.srt.arg_groups.pd_disaggregation_hook",
    "sglang.srt.arg_groups.speculative_hook",
    "sglang.srt.distributed.device_communicators.custom_all_reduce",
    "sglang.srt.distributed.device_communicators.hpu_communicator",
    "sglang.srt.distributed.device_communicators.npu_communicator",
    "sglang.srt.distributed.device_communicators.pymscclpp",
    "sglang.srt.distributed.device_communicators.pynccl",
    "sglang.srt.distributed.device_communicators.shm_broadcast",
    "sglang.srt.distributed.device_communicators.torch_symm_mem",
    "sglang.srt.distributed.device_communicators.xpu_communicator",
    "sglang.srt.dllm.algorithm",
)
"""Modules that SGLang 0.5.17 imports inside functions while it constructs a Scheduler."""


def prepare_first_build(device: str) -> None:
    """Prepare the first build of this process, which serves on `device` (cpu, cuda:0)."""
    attention = f"sglang.srt.layers.attention.{arguments.attention_backend(device)}_backend"
    for name in (*_MODULES, attention):
        with suppress(Exception):  # a module that fails to import may never be needed
            importlib.import_module(name)
    from sglang.srt.arg_groups.arg_utils import resolvable_fields
    from sglang.srt.server_args import ServerArgs

    resolvable_fields(ServerArgs)  # evaluates the annotations of all arguments and caches the result
