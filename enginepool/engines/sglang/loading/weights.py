"""The first load of a model: SGLang's code loads it on the CPU, then all its tensors are written into a segment.

Follows `DefaultModelLoader.load_model` of SGLang 0.5.17. To be imported after `warm` has run.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import Any, cast

import sglang
import torch
from sglang.srt.configs.load_config import LoadConfig
from sglang.srt.configs.model_config import ModelConfig
from sglang.srt.model_loader.loader import DefaultModelLoader, device_loading_context, get_model_loader
from sglang.srt.utils import reserve_rope_cache_for_long_sequences
from torch import nn

from config.errors import EngineError, StoreError, describe
from enginepool.engines.sglang import arguments
from enginepool.engines.sglang.building import as_only_rank, default_dtype, initialise
from enginepool.engines.sglang.gpu.imports import answered_by_nvml
from enginepool.engines.sglang.loading.dummy import invent_weights
from enginepool.engines.sglang.loading.missing import Marks
from enginepool.engines.sglang.loading.rotary import compute_tables
from enginepool.engines.sglang.tensors import Walk
from enginepool.messages import Manifest, ModelSpec
from enginepool.weights.checkpoint import digest, weight_files
from enginepool.weights.layout import NamedTensor
from enginepool.weights.loader import Meter, Progress, expect_room, read_ahead, threads, write
from enginepool.weights.segment import HeldSegment

ALIGNMENT = 512
"""Bytes. torch's allocator guarantees this alignment, and CUDA kernels may rely on it."""
_NOT_NEEDED = ("sglang.srt.utils.common.LazyValue",)
"""Types of objects created by loading but not needed for serving: experts' weights by layer, for rebalancing ranks."""


def load(model: ModelSpec, progress: Progress, *, max_running: int, device: str) -> tuple[Manifest, HeldSegment]:
    """Implements `LoadWeights`, for serving on `device`.

    On a GPU it uses memory for a CUDA context, rotary embeddings, and quantization kernels, one module at a time.
    `max_running` is the worker's setting, on which the model's arguments depend.
    """
    torch.set_num_threads(threads())
    key = digest(model, *_versions(), json.dumps(model.engine_args, sort_keys=True), device)
    files = weight_files(model)
    meter = Meter(progress, files)
    expect_room(model, files, copies=2)  # SGLang's copy and the segment
    read_ahead(model, files, meter)
    try:
        with nullcontext() if device == "cpu" else answered_by_nvml():
            server_args = arguments.server_args(model, max_running, 0, device)
            model_config = ModelConfig.from_server_args(server_args)
            with as_only_rank(server_args, model_config):
                process_on = torch.device(device if model_config.quantization else "cpu")
                module, values, removed = build(server_args, model_config, process_on, model)
                if device != "cpu":
                    compute_tables(module, torch.device(device))
    except (EngineError, StoreError) as error:
        raise StoreError(f"{model.name}: {error}") from error
    except Exception as error:  # an invalid checkpoint can make SGLang raise anything
        raise StoreError(f"{model.name}: SGLang cannot load {model.path}: {describe(error)}") from error
    entries = [NamedTensor(name, it.tensor.detach(), it.kind) for name, it in Walk(module).tensors.items()]
    tensors, blocks, held = write(model, entries, ALIGNMENT, meter)
    return Manifest(model.name, key, held.nbytes, tensors, blocks, values, removed), held


def build(
    server_args: Any, model_config: Any, device: torch.device, model: ModelSpec
) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """Load the model on the CPU; returns it with the plain values that loading changed and the names it removed.

    Raises:
        StoreError: the checkpoint lacks tensors, or loading does something that the weight store cannot reproduce.
    """
    load_config = LoadConfig(load_format=server_args.load_format)
    reader = get_model_loader(load_config, model_config)
    if type(reader) is not DefaultModelLoader:
        raise StoreError(f"SGLang loads it with {type(reader).__name__}, which the weight store does not support")
    module = initialise(model_config, load_config, torch.device("cpu"))
    before = Walk(module)
    with default_dtype(model_config.dtype):
        if model.weights == "dummy":
            invent_weights(module, model, model_config)
        else:
            _read(module, reader._get_all_weights(model_config, module))
        _process(module, device)
        # Done here because ModelRunner would do it at each activation, and wait for the copy of the weights.
        reserve_rope_cache_for_long_sequences(module, server_args, model_config)
    after = Walk(module.eval())
    _check_structure(before, after)
    changed = {name: value for name, value in after.values.items() if before.values.get(name, ...) != value}
    return module, changed, _removed(before, after)


def _read(module: nn.Module, tensors: Any) -> None:
    marks = Marks(module)
    cast(Any, module).load_weights(tensors)
    if missing := marks.left():
        raise StoreError(f"{len(missing)} tensors are missing in the checkpoint, such as {missing[0]}")


def _process(module: nn.Module, device: torch.device) -> None:
    """The second half of SGLang's `load_weights_and_postprocess`, whose first half would query the GPU's memory."""
    for _, part in module.named_modules():
        method = getattr(part, "quant_method", None)
        if method is not None:
            with device_loading_context(part, device):
                method.process_weights_after_loading(part)


def _check_structure(before: Walk, after: Walk) -> None:
    """Check that loading created no objects. Tensors and plain values can be restored at an activation, other objects
    cannot. Raises: StoreError."""
    for name, kind in after.others.items():
        if before.others.get(name) != kind and kind not in _NOT_NEEDED:
            raise StoreError(f"loading turns {name} into a {kind}, which the weight store cannot reproduce")


def _removed(before: Walk, after: Walk) -> tuple[str, ...]:
    known = {*after.tensors, *after.values, *after.others}
    names = (*before.values, *before.others)
    return tuple(name for name in names if name not in known and after.has_holder(name))


def _versions() -> tuple[str, ...]:
    return (f"torch {torch.__version__}", f"sglang {sglang.__version__}")
