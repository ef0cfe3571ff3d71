"""Decodes a document into the registry's Structs; a field's annotation alone defines which values are valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import FieldInfo

from config.document import LEFT_OUT, Value
from config.problems import Key, Problems

S = TypeVar("S", bound=Struct)

_IN_WORDS: dict[object, str] = {
    bool: "true or false",
    str: "text",
    int: "an integer",
    float: "a number",
    Path: "a path",
}
_UNSET = msgspec.UNSET


class Decoder:
    """Records problems and continues: an invalid value is replaced by the field's default, so call
    `Problems.raise_if_any` before using anything decoded."""

    def __init__(self, problems: Problems, folder: Path) -> None:
        self._problems = problems
        self._folder = folder

    def struct(self, value: Value, kind: type[S], key: Key) -> S:
        """Decode `value` into a Struct of type `kind`; `key` is where it stands in the document."""
        fields = _fields(kind)
        members = self.members(value, {name: field.type for name, field in fields.items()}, key)
        for name, field in fields.items():
            if field.required and name not in members:
                self._missing(value, field, (*key, name))
                members[name] = ""
        return kind(**members)

    def members(self, value: Value, hints: Mapping[str, Any], key: Key) -> dict[str, Any]:
        """Decode a mapping whose allowed keys and their types are `hints`; invalid entries are left out."""
        if not isinstance(value.content, dict):
            self._wrong(key, f"a mapping with keys of {', '.join(hints)}", value)
            return {}
        members: dict[str, Any] = {}
        for name, member in value.content.items():
            if name in hints:
                members[name] = self._decode(member, hints[name], (*key, name))
            else:
                self._problems.add((*key, name), _choice(name, hints) or "no key here", "an unknown key")
        return {name: member for name, member in members.items() if member is not _UNSET}

    def _decode(self, value: Value, hint: Any, key: Key) -> Any:
        bare = _bare(hint)
        if isinstance(bare, type) and issubclass(bare, Struct):
            return self.struct(value, bare, key)
        if get_origin(bare) is tuple:
            return self._items(value, hint, key)
        return self._leaf(value, hint, key)

    def _items(self, value: Value, hint: Any, key: Key) -> Any:
        if not isinstance(value.content, list):
            self._wrong(key, _description(hint) or "a list", value)
            return _UNSET
        item_hint = get_args(_bare(hint))[0]
        items = [self._decode(item, item_hint, (*key, index)) for index, item in enumerate(value.content)]
        if any(item is _UNSET for item in items):
            return _UNSET
        least = next((meta.min_length for meta in _metas(hint)), None) or 0
        if len(items) < least:
            self._wrong(key, expected(hint), value)
            return _UNSET
        return tuple(items)

    def _leaf(self, value: Value, hint: Any, key: Key) -> Any:
        try:
            return msgspec.convert(_parsed(_meant(value, hint), hint), hint, dec_hook=self._convert_path)
        except ValueError:
            self._wrong(key, expected(hint, value.plain), value)
            return _UNSET

    def _convert_path(self, kind: type, content: Any) -> Path:
        """Resolve a relative path against the registry file's folder. Raises: ValueError."""
        if kind is not Path or not isinstance(content, str) or not content or "\0" in content:
            raise ValueError("not a path")
        try:
            return self._folder / Path(content).expanduser()
        except RuntimeError as error:
            raise ValueError("no home folder") from error

    def _wrong(self, key: Key, wanted: str, value: Value) -> None:
        if value is not LEFT_OUT:
            self._problems.add(key, wanted, value.written)

    def _missing(self, parent: Value, field: FieldInfo, key: Key) -> None:
        """Report a missing field, unless the key is present with an invalid value, which is reported already."""
        if isinstance(parent.content, dict) and not self._problems.spoilt(key):
            self._problems.add(key, expected(field.type), "nothing")


def expected(hint: Any, got: object = None) -> str:
    """Describes in words what a field of this type accepts; for a choice, also the option most similar to `got`."""
    described = _description(hint)
    if described is not None:
        return described
    bare = _bare(hint)
    if get_origin(bare) is Literal:
        return _choice(str(got), get_args(bare))
    if get_origin(bare) is dict:
        return "a mapping"
    return _IN_WORDS[bare]


def _choice(name: str, choices: Iterable[str]) -> str:
    choices = list(choices)
    listed = f"one of {', '.join(choices)}" if len(choices) > 1 else "".join(choices)
    similar = difflib.get_close_matches(name, choices, n=1)
    return f"{listed} (did you mean {similar[0]}?)" if similar else listed


@cache
def _fields(kind: type[Struct]) -> dict[str, FieldInfo]:
    return {field.name: field for field in msgspec.structs.fields(kind)}


def _metas(hint: Any) -> tuple[Meta, ...]:
    """The Meta annotations of a type; of an optional type, those of the type inside."""
    if type(None) in get_args(hint):
        return _metas(next(option for option in get_args(hint) if option is not type(None)))
    return hint.__metadata__ if get_origin(hint) is Annotated else ()


def _bare(hint: Any) -> Any:
    """The type without annotations and without None."""
    if get_origin(hint) is Annotated:
        return _bare(get_args(hint)[0])
    options = [option for option in get_args(hint) if option is not type(None)]
    return _bare(options[0]) if type(None) in get_args(hint) else hint


def _description(hint: Any) -> str | None:
    return next((meta.description for meta in _metas(hint)), None)


def _meant(value: Value, hint: Any) -> Any:
    """YAML 1.1 reads the words on and off as booleans; where a choice is expected, take the word as written."""
    if isinstance(value.plain, bool) and get_origin(_bare(hint)) is Literal:
        return value.written.lower()
    return value.plain


def _parsed(content: Any, hint: Any) -> Any:
    """Converts a value with a unit to its base unit; returns any other value unchanged. Raises: ValueError."""
    parse = next((meta.extra["parse"] for meta in _metas(hint) if meta.extra), None)
    return parse(content) if parse else content
