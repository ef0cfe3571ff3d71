"""The fields of SGLang's requests: `fields MODULE:CLASS...` prints the names of each class's as JSON."""

from __future__ import annotations

import dataclasses
import importlib
import json


def names(kind: str) -> list[str]:
    module, name = kind.split(":")
    cls = getattr(importlib.import_module(module), name)
    found = getattr(cls, "model_fields", None) or getattr(cls, "__struct_fields__", None)
    return list(found or [field.name for field in dataclasses.fields(cls)])


def main(*kinds: str) -> None:
    print(json.dumps({kind: names(kind) for kind in kinds}))
