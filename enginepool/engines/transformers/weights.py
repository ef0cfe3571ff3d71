"""The first load of a model: transformers' own loader reads it, and all its tensors go into a segment."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from config.errors import EngineError, StoreError, describe
from enginepool.checkpoint import digest, weight_files
from enginepool.engines.transformers.checkpoint import FOREIGN_ERRORS, torch_dtype
from enginepool.engines.transformers.tensors import slots_of
from enginepool.layout import Entry
from enginepool.loader import Meter, Progress, read_ahead, write
from enginepool.messages import Manifest, ModelSpec
from enginepool.segment import HeldSegment

ALIGNMENT = 64


def load(model: ModelSpec, progress: Progress) -> tuple[Manifest, HeldSegment]:
    """As `LoadWeights` says."""
    key = digest(model, f"torch {torch.__version__}", f"transformers {transformers.__version__}")
    files = weight_files(model)
    meter = Meter(progress, files)
    read_ahead(model, files, meter)
    entries = _entries(model, _from_pretrained(model))
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
    # transformers would go on with random values in their place.
    module, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise StoreError(f"{model.name}: {len(missing)} tensors are missing in {model.path}, such as {missing[0]}")
    assert isinstance(module, nn.Module)
    return module


def _entries(model: ModelSpec, module: nn.Module) -> list[Entry]:
    try:
        return [Entry(slot.name, slot.tensor.detach(), slot.kind) for slot in slots_of(module)]
    except EngineError as error:
        raise StoreError(f"{model.name}: {error}") from error
