"""Reads a registry: `document` makes a tree of the YAML, `decode` Structs of the tree, `check` looks at the whole."""

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
    """The registry in `path`, in base units, its paths absolute: a relative one begins at the file's folder.

    With `serving` false it need not be able to serve: a model may have a shape alone.

    Raises:
        ConfigError: with every problem at once, each a line of file, line, key, what was expected and what is there.
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
    """Which arguments there are is known only once the engine is: hence a second look at these."""
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
