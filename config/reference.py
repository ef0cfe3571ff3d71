"""docs/configuration.md, written from the registry's types, so that it cannot say anything else than they do.

`python -m config.reference` rewrites it; a test compares.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from inspect import getsource
from itertools import pairwise
from pathlib import Path
from typing import Any

from msgspec import NODEFAULT, inspect

from config import registry
from config.engine_args import MODEL_ARGUMENTS, POOL_ARGUMENTS
from config.units import parse_duration, parse_size

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by `python -m config.reference` from config/registry.py. Change the docstrings there and run it again. -->

A registry is one YAML file. Every key has a default but a model's `name`, and every section may be left out; only
`models` must have an entry. [`config/examples/`](../config/examples) has complete files with comments.

- **Durations** are written `500ms`, `2s`, `1.5m` or `1h`; a bare number is seconds.
- **Sizes** are written `512MiB`, `16GiB` or `1GB`; a bare integer is bytes.
- **Paths** that are relative begin at the folder of the registry.
- "left out" in the column of defaults means that the key has no value of its own; its text says what happens then.

`prism check FILE` reports every mistake at once, with file, line, key, what was expected and what is there. Unknown
keys are mistakes. The registry is read once, at the start. [Concepts](concepts.md) explains the words used here.
"""

ARGUMENTS = """
Which arguments there are depends on `pool.engine`. An engine that is not listed takes none. Those of `sglang` are
SGLang's own server arguments; `prism check` refuses all others.
"""

_DURATIONS = ((60.0, "m"), (1.0, "s"), (1e-3, "ms"))
_SIZES = ((2.0**30, "GiB"), (2.0**20, "MiB"), (2.0**10, "KiB"))
_EXAMPLES = re.compile(r" (such as|without) .*")
"""What a table leaves out of the words that describe a type."""


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    """The whole page, as it should be."""
    return "\n".join([INTRODUCTION.rstrip(), *_section(_struct(inspect.type_info(registry.Registry)), "")]) + "\n"


def keys() -> Iterator[tuple[str, str]]:
    """Every key of a registry, such as `pool.engine`, and what is said of it."""
    yield from _keys(_struct(inspect.type_info(registry.Registry)), "")


def _keys(struct: inspect.StructType, prefix: str) -> Iterator[tuple[str, str]]:
    for field in struct.fields:
        yield f"{prefix}{field.name}", _meaning(struct, field)
        if (inner := _struct_in(field)) is not None:
            yield from _keys(inner, f"{prefix}{field.name}.")


def _section(struct: inspect.StructType, prefix: str) -> Iterator[str]:
    """A table of the plain keys, then a section for each key that has keys of its own."""
    plain = [field for field in struct.fields if _struct_in(field) is None]
    if plain:
        yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
        yield from (_row(struct, field) for field in plain)
    for field in struct.fields:
        path = f"{prefix}{field.name}"
        if (inner := _struct_in(field)) is not None:
            yield from ("", f"{'#' * (path.count('.') + 2)} `{path}`", "", _meaning(struct, field), "")
            yield from _section(inner, f"{path}.")
    if any(field.name == "engine_args" for field in plain):
        yield from _arguments(prefix)


def _row(struct: inspect.StructType, field: inspect.Field) -> str:
    return f"| `{field.name}` | {_type(field.type)} | {_default(field)} | {_meaning(struct, field)} |"


def _arguments(prefix: str) -> Iterator[str]:
    by_engine = POOL_ARGUMENTS if prefix == "pool." else MODEL_ARGUMENTS
    yield from ("", f"### `{prefix}engine_args`", ARGUMENTS)
    yield from ("| engine | key | type |", "| --- | --- | --- |")
    for engine, arguments in by_engine.items():
        for name, hint in arguments.items():
            yield f"| `{engine}` | `{name}` | {_type(inspect.type_info(hint))} |"


# parts of a row


def _type(kind: inspect.Type) -> str:
    bare, description = _bare(kind), _metadata(kind).get("description", "")
    if description:
        return _EXAMPLES.sub("", str(description)).removeprefix("a ").removeprefix("an ")
    match bare:
        case inspect.LiteralType(values=values):
            return ", ".join(f"`{value}`" for value in values)
        case inspect.VarTupleType(item_type=item):
            return f"list of {_type(item)}s"
        case inspect.BoolType():
            return "`true` or `false`"
        case inspect.DictType():
            return "mapping"
        case _:
            return "path"


def _default(field: inspect.Field) -> str:
    if field.required:
        return "**required**"
    if field.default is NODEFAULT:
        return "empty" if field.default_factory is dict else "each user's own"
    return _written(field.default, _parser(field.type))


def _written(value: Any, parse: Callable[[object], float] | None) -> str:
    """A value as one would write it into a registry."""
    if value is None:
        return "left out"
    if isinstance(value, tuple):
        return f"`[{', '.join(value)}]`" if value else "empty"
    if parse is parse_duration:
        return f"`{_with_unit(value, _DURATIONS, 's')}`"
    if parse is parse_size:
        return f"`{_with_unit(value, _SIZES, 'B')}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _with_unit(value: float, units: tuple[tuple[float, str], ...], base: str) -> str:
    """In the largest unit of which it is a whole number."""
    for scale, unit in units:
        if value and round(value / scale, 6).is_integer():
            return f"{round(value / scale)}{unit}"
    return f"{value:g}{base}"


def _meaning(struct: inspect.StructType, field: inspect.Field) -> str:
    return _docstrings()[struct.cls.__name__].get(field.name, "").replace("|", "\\|")


# what the types say


def _struct_in(field: inspect.Field) -> inspect.StructType | None:
    """The Struct that a key holds, or a list of which."""
    bare = _bare(field.type)
    bare = _bare(bare.item_type) if isinstance(bare, inspect.VarTupleType) else bare
    return bare if isinstance(bare, inspect.StructType) else None


def _struct(kind: inspect.Type) -> inspect.StructType:
    assert isinstance(kind, inspect.StructType)
    return kind


def _outer(kind: inspect.Type) -> inspect.Type:
    """Without None, where it is optional."""
    if isinstance(kind, inspect.UnionType):
        return next(option for option in kind.types if not isinstance(option, inspect.NoneType))
    return kind


def _bare(kind: inspect.Type) -> inspect.Type:
    kind = _outer(kind)
    return kind.type if isinstance(kind, inspect.Metadata) else kind


def _metadata(kind: inspect.Type) -> dict[str, Any]:
    """The description and what else an annotation has, where there is one."""
    kind = _outer(kind)
    return {**(kind.extra_json_schema or {}), **(kind.extra or {})} if isinstance(kind, inspect.Metadata) else {}


def _parser(kind: inspect.Type) -> Callable[[object], float] | None:
    return _metadata(kind).get("parse")


@cache
def _docstrings() -> dict[str, dict[str, str]]:
    """By class and field, the string below each field of config/registry.py: Python itself does not keep them."""
    classes = [node for node in ast.parse(getsource(registry)).body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_documented(node.body)) for node in classes}


def _documented(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, after in pairwise(body):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())


if __name__ == "__main__":
    main()
