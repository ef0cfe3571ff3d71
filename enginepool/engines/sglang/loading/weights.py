"""The first load of a model: SGLang's own code reads it on the CPU, and all that it then holds goes into a segment.

Of SGLang 0.5.17, whose `DefaultModelLoader.load_model` this follows. To be imported after `warm` only.
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
"""Bytes: what torch's allocator gives, and CUDA kernels may rely on."""
_NOT_NEEDED = ("sglang.srt.utils.common.LazyValue",)
"""Types of what loading makes for other purposes: the experts' weights by layer, to move them between ranks."""


def load(model: ModelSpec, progress: Progress, *, max_running: int, device: str) -> tuple[Manifest, HeldSegment]:
    """As `LoadWeights` says, for serving on `device`.

    It takes no GPU memory but for a CUDA context, for rotary embeddings, and for a quantization's kernels, which run
    there, one module at a time. `max_running` is the worker's, since a model's arguments are made of it.
    """
    torch.set_num_threads(threads())
    key = digest(model, *_versions(), json.dumps(model.engine_args, sort_keys=True), device)
    files = weight_files(model)
    meter = Meter(progress, files)
    expect_room(model, files, copies=2)  # SGLang's own is the other
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
    except Exception as error:  # whatever a checkpoint makes SGLang raise
        raise StoreError(f"{model.name}: SGLang cannot load {model.path}: {describe(error)}") from error
    entries = [NamedTensor(name, it.tensor.detach(), it.kind) for name, it in Walk(module).tensors.items()]
    tensors, blocks, held = write(model, entries, ALIGNMENT, meter)
    return Manifest(model.name, key, held.nbytes, tensors, blocks, values, removed), held


def build(
    server_args: Any, model_config: Any, device: torch.device, model: ModelSpec
) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """The loaded model on the CPU, the plain values that loading changed, and the names that it took away.

    Raises:
        StoreError: the checkpoint lacks tensors, or loading does what the weight store cannot repeat.
    """
    load_config = LoadConfig(load_format=server_args.load_format)
    reader = get_model_loader(load_config, model_config)
    if type(reader) is not DefaultModelLoader:
        raise StoreError(f"SGLang loads it by its {type(reader).__name__}, which the weight store cannot repeat")
    module = initialise(model_config, load_config, torch.device("cpu"))
    before = Walk(module)
    with default_dtype(model_config.dtype):
        if model.weights == "dummy":
            invent_weights(module, model, model_config)
        else:
            _read(module, reader._get_all_weights(model_config, module))
        _process(module, device)
        # ModelRunner would at an activation, and wait for the copy of the weights meanwhile.
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
    """The second half of SGLang's `load_weights_and_postprocess`, whose first half would ask the GPU for its memory."""
    for _, part in module.named_modules():
        method = getattr(part, "quant_method", None)
        if method is not None:
            with device_loading_context(part, device):
                method.process_weights_after_loading(part)


def _check_structure(before: Walk, after: Walk) -> None:
    """Tensors and plain values can be put back. Objects cannot: an activation has those of a fresh model."""
    for name, kind in after.others.items():
        if before.others.get(name) != kind and kind not in _NOT_NEEDED:
            raise StoreError(f"loading makes a {kind} of {name}, which the weight store cannot repeat")


def _removed(before: Walk, after: Walk) -> tuple[str, ...]:
    known = {*after.tensors, *after.values, *after.others}
    names = (*before.values, *before.others)
    return tuple(name for name in names if name not in known and after.has_holder(name))


def _versions() -> tuple[str, ...]:
    return (f"torch {torch.__version__}", f"sglang {sglang.__version__}")
