"""Finds models' tokenizers for a load test, on the command line or in Prism's registry."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.load.tokens import CountEach, counter_of, simulated_counter
from config.errors import ConfigError
from config.reader import read_registry
from config.registry import ModelConfig, Registry
from simulator.errors import UsageError


def named_folder(text: str) -> tuple[str, Path]:
    """`NAME=FOLDER`, for argparse."""
    name, _, folder = text.partition("=")
    if not name or not folder or not Path(folder).is_dir():
        raise argparse.ArgumentTypeError(f"expected NAME=FOLDER of a model's tokenizer, got {text!r}")
    return name, Path(folder)


def counters(named: Mapping[str, Path], registry: Path | None, models: Iterable[str]) -> dict[str, CountEach]:
    """Token counters of those `models` whose tokenizer is known; the command line takes precedence over the registry.

    Raises:
        StudyError: a tokenizer or the registry cannot be read.
    """
    found = {} if registry is None else of_registry(_read(registry), models)
    return found | _of_folders({name: named[name] for name in models if name in named})


def of_registry(registry: Registry, models: Iterable[str]) -> dict[str, CountEach]:
    """Token counters of those `models` that the registry contains. Raises: StudyError."""
    listed = {model.name: model for model in registry.models}
    ours = [listed[name] for name in models if name in listed]
    if registry.pool.engine == "simulated":
        return {model.name: simulated_counter for model in ours}
    return _of_folders({model.name: folder for model in ours if (folder := _folder(model)) is not None})


def _folder(model: ModelConfig) -> Path | None:
    """The folder of a model's tokenizer; for a shape, the folder it is in."""
    return model.path or (model.shape.parent if model.shape is not None else None)


def _of_folders(folders: Mapping[str, Path]) -> dict[str, CountEach]:
    made = {folder: counter_of(folder) for folder in dict.fromkeys(folders.values())}
    return {name: made[folder] for name, folder in folders.items()}


def _read(registry: Path) -> Registry:
    try:
        return read_registry(registry, serving=False)
    except ConfigError as error:
        raise UsageError(str(error)) from error
