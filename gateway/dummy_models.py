"""Folders for models with dummy weights: engines want config.json and tokenizer, and the registry may have less.

They lie among the gateway's own files (`gateway.runtime_dir`), and go with them.
"""

from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from config.engines import facts_of
from config.errors import PoolError
from config.model_files import config_file, tokenizer_folder, vocabulary
from config.registry import ModelConfig, Registry
from gateway.dummy_tokenizer import special_ids, write_tokenizer

CONTEXT = 4096
"""Tokens that a model takes whose config.json does not say."""
NAME_SHOWN = 100
"""Characters of a model's name in its folder's."""


def with_folders(registry: Registry, folder: Path) -> Registry:
    """The registry with a path for every model that has dummy weights and is to be served.

    Raises:
        PoolError: a folder in `folder` cannot be written.
    """
    if not facts_of(registry.pool).needs_weights:
        return registry
    try:
        models = tuple(
            replace(model, path=_folder_of(model, folder / f"{index}-{_plain(model.name)}"), shape=None)
            if model.weights == "dummy"
            else model
            for index, model in enumerate(registry.models)
        )
    except OSError as error:
        raise PoolError(f"cannot write the files of models with dummy weights: {error}") from error
    return replace(registry, models=models)


def _folder_of(model: ModelConfig, folder: Path) -> Path:
    """One of the registry's that is complete, or `folder`, which is made so."""
    if (complete := tokenizer_folder(model)) is not None:
        return complete
    file = config_file(model)
    assert file is not None
    write_folder(folder, json.loads(file.read_bytes()))
    return folder


def write_folder(folder: Path, config: dict[str, Any]) -> None:
    """Make `folder`, with the config.json whose content is `config` and a tokenizer of its vocabulary's size.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True)
    (folder / "config.json").write_text(json.dumps(config | special_ids() | _written_by(), indent=2))
    write_tokenizer(folder, vocabulary(config) or 0, config.get("max_position_embeddings", CONTEXT))


def _written_by() -> dict[str, str]:
    """Without it, transformers warns of tokenizers that it wrote wrongly once."""
    return {"transformers_version": metadata.version("transformers")}


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:NAME_SHOWN]
