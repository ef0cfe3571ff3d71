"""The first load of a model: transformers reads it, or builds it for dummy weights, and all its tensors are stored."""

from __future__ import annotations

from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from config.errors import EngineError, StoreError, describe
from enginepool.engines.transformers.checkpoint import FOREIGN_ERRORS, torch_dtype
from enginepool.engines.transformers.tensors import slots_of
from enginepool.messages import Manifest, ModelSpec
from enginepool.weights.checkpoint import digest, weight_files
from enginepool.weights.dummy import fill
from enginepool.weights.layout import NamedTensor
from enginepool.weights.loader import Meter, Progress, expect_room, read_ahead, write
from enginepool.weights.segment import HeldSegment

ALIGNMENT = 64


def load(model: ModelSpec, progress: Progress) -> tuple[Manifest, HeldSegment]:
    """Implements `LoadWeights`."""
    key = digest(model, f"torch {torch.__version__}", f"transformers {transformers.__version__}")
    files = weight_files(model)
    meter = Meter(progress, files)
    expect_room(model, files, copies=1)  # transformers maps the files, so the segment is the only copy
    read_ahead(model, files, meter)
    module = _with_dummy_weights(model) if model.weights == "dummy" else _from_pretrained(model)
    entries = _entries(model, module)
    tensors, blocks, held = write(model, entries, ALIGNMENT, meter)
    return Manifest(model.name, key, held.nbytes, tensors, blocks), held


def _from_pretrained(model: ModelSpec) -> nn.Module:
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model.path, dtype=torch_dtype(model), local_files_only=True, output_loading_info=True
        )
    except FOREIGN_ERRORS as error:
        raise StoreError(f"{model.name}: transformers cannot load {model.path}: {describe(error)}") from error
    # transformers only warns about missing tensors and leaves random values in them.
    module, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise StoreError(f"{model.name}: {len(missing)} tensors are missing in {model.path}, such as {missing[0]}")
    assert isinstance(module, nn.Module)
    return module


def _with_dummy_weights(model: ModelSpec) -> nn.Module:
    try:
        config = AutoConfig.from_pretrained(model.path, local_files_only=True)
        if getattr(config, "quantization_config", None):
            raise StoreError(f"{model.name}: the engine transformers has no dummy weights for quantized models")
        own = {} if model.dtype == "auto" else {"dtype": torch_dtype(model)}
        with no_init_weights():
            module: nn.Module = AutoModelForCausalLM.from_config(config, **own)
        cast(Any, module).tie_weights()
        fill(module, model.name, config.get_text_config(decoder=True).hidden_size)
    except FOREIGN_ERRORS as error:
        raise StoreError(f"{model.name}: transformers cannot build {model.path}: {describe(error)}") from error
    return module


def _entries(model: ModelSpec, module: nn.Module) -> list[NamedTensor]:
    try:
        return [NamedTensor(slot.name, slot.tensor.detach(), slot.kind) for slot in slots_of(module)]
    except EngineError as error:
        raise StoreError(f"{model.name}: {error}") from error
