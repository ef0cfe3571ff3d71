"""Reads a registry: `document` parses the YAML, `decode` turns it into Structs, `check` validates the whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from config.check import check
from config.decode import Decoder
from config.document import Value, read_document
from config.engine_args import MODEL_ARGUMENTS, POOL_ARGUMENTS
from config.problems import Problems
from config.registry import Registry


def read_registry(path: Path, *, serving: bool = True) -> Registry:
    """Read and validate the registry at `path`. Values are in base units; relative paths start at the file's folder.

    With `serving` false, models need no weights: a shape alone is enough.

    Raises:
        ConfigError: with every problem, each as one line of file, line, key, what was expected and what was found.
    """
    problems = Problems(path)
    document = read_document(path, problems)
    decoder = Decoder(problems, path.absolute().parent)
    registry = decoder.struct(document, Registry, ())
    if not problems.spoilt(("pool", "engine")):
        registry = _with_engine_args(registry, document, decoder)
    check(registry, problems, serving=serving)
    problems.raise_if_any()
    return registry


def _with_engine_args(registry: Registry, document: Value, decoder: Decoder) -> Registry:
    """Decode `engine_args` in a second pass, because the allowed arguments depend on the engine."""
    engine = registry.pool.engine

    def arguments(hints: Mapping[str, Any], *parent: str | int) -> dict[str, Any]:
        key = (*parent, "engine_args")
        value = document.at(key)
        return decoder.members(value, hints, key) if value and isinstance(value.content, dict) else {}

    pool = replace(registry.pool, engine_args=arguments(POOL_ARGUMENTS[engine], "pool"))
    models = tuple(
        replace(model, engine_args=arguments(MODEL_ARGUMENTS[engine], "models", index))
        for index, model in enumerate(registry.models)
    )
    return replace(registry, pool=pool, models=models)
