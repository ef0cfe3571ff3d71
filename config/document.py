"""Reads a YAML file into a tree of plain values and remembers the line of every key.

PyYAML's own loader drops line numbers, lets the last of duplicate keys win, and turns tags into Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from config.errors import ConfigError
from config.problems import Key, Problems

MAX_VALUES = 100_000
"""Nested aliases can expand a file of a few lines into a tree of any size."""

_CONSTRUCTION_ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError)
"""What PyYAML raises for a scalar that does not match its tag, such as `!!bool perhaps`."""

_MERGE = "tag:yaml.org,2002:merge"
_MAP = "tag:yaml.org,2002:map"
_LIST = "tag:yaml.org,2002:seq"
_TEXT = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"


@dataclass(frozen=True, slots=True)
class Value:
    """A mapping of names to values, a list of values, or a scalar."""

    content: Any
    written: str
    """How error messages refer to it."""

    def at(self, key: Key) -> Value | None:
        """The value at `key` below this one; None if there is none."""
        found = self
        for part in key:
            match found.content, part:
                case dict() as members, str() if part in members:
                    found = members[part]
                case list() as items, int() if part < len(items):
                    found = items[part]
                case _:
                    return None
        return found

    @property
    def plain(self) -> Any:
        """The value as plain Python objects."""
        match self.content:
            case dict():
                return {name: value.plain for name, value in self.content.items()}
            case list():
                return [value.plain for value in self.content]
            case scalar:
                return scalar


LEFT_OUT = Value(None, "nothing")
"""Stands in for an invalid value that has already been reported."""


def read_document(path: Path, problems: Problems) -> Value:
    """Read `path`. Invalid values are reported in `problems` and left out; `problems` also learns every key's line.

    Raises:
        ConfigError: the file cannot be read, is empty, too large or not YAML.
    """
    node = _compose(path)
    if node is None:
        raise ConfigError([f"{path}:1: expected a registry, got an empty file"])
    return _Reader(path, problems).read(node)


def _compose(path: Path) -> Node | None:
    try:
        node: Node | None = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise ConfigError([f"{path}: expected a readable file, got: {error.strerror or error}"]) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError([f"{path}:{line}: expected YAML, got: {reason}"]) from error
    except yaml.reader.ReaderError as error:
        raise ConfigError([f"{path}: expected YAML in UTF-8, got: {error.reason} at {error.position}"]) from error
    except RecursionError as error:
        raise ConfigError([f"{path}: expected YAML, got hundreds of nested levels"]) from error
    return node


class _Reader:
    def __init__(self, path: Path, problems: Problems) -> None:
        self._path = path
        self._problems = problems
        self._constructor = SafeConstructor()
        self._values = 0
        self._open: list[Node] = []

    def read(self, root: Node) -> Value:
        return self._value(root, ()) or LEFT_OUT

    def _value(self, node: Node, key: Key) -> Value | None:
        self._count()
        if any(node is outer for outer in self._open):
            self._problems.add(key, "a value", "an alias of a value that contains it")
            return None
        self._open.append(node)
        try:
            return self._convert(node, key)
        finally:
            self._open.pop()

    def _count(self) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise ConfigError([f"{self._path}: expected at most {MAX_VALUES} values, got more, aliases counted"])

    def _convert(self, node: Node, key: Key) -> Value | None:
        if isinstance(node, MappingNode) and node.tag == _MAP:
            return Value(self._mapping(node, key), "a mapping")
        if isinstance(node, SequenceNode) and node.tag == _LIST:
            return Value(self._list(node, key), "a list" if node.value else "an empty list")
        return self._scalar(node, key)

    def _mapping(self, node: MappingNode, key: Key) -> dict[str, Value]:
        content: dict[str, Value] = {}
        for name_node, value_node in self._entries(node, key):
            name = name_node.value
            if name not in content:
                self._problems.set_line((*key, name), _line(name_node))
                value = self._value(value_node, (*key, name))
                if value is not None:
                    content[name] = value
        return content

    def _list(self, node: SequenceNode, key: Key) -> list[Value]:
        for index, item in enumerate(node.value):
            self._problems.set_line((*key, index), _line(item))
        values = [self._value(item, (*key, index)) for index, item in enumerate(node.value)]
        # Invalid items stay in the list so that the others keep their index.
        return [value or LEFT_OUT for value in values]

    def _scalar(self, node: Node, key: Key) -> Value | None:
        try:
            content = self._constructor.construct_object(node) if isinstance(node, ScalarNode) else None
            if isinstance(content, str):
                content.encode()  # An escape can produce a lone surrogate, which neither file systems nor JSON accept.
        except _CONSTRUCTION_ERRORS:
            content = None
        if content is None and node.tag != _NULL:
            self._problems.add(key, "a plain YAML value", f"{_written(node)} with the tag {_short_tag(node)}")
            return None
        return Value(content, _written(node))

    def _entries(self, node: MappingNode, key: Key) -> Iterator[tuple[ScalarNode, Node]]:
        """The mapping's own entries, then those merged in by `<<`; the caller keeps the first entry of a name."""
        merged: list[Node] = []
        own: dict[str, int] = {}
        for name, value in node.value:
            if name.tag == _MERGE:
                merged += value.value if isinstance(value, SequenceNode) else [value]
            elif not isinstance(name, ScalarNode):
                self._problems.add((*key, "?"), "a name as key", f"{_written(name)} as key", line=_line(name))
            elif name.value in own:
                got = f"it again (first on line {own[name.value]})"
                self._problems.add((*key, name.value), "one value", got, line=_line(name))
            else:
                own[name.value] = _line(name)
                yield name, value
        for mapping in merged:
            yield from self._merged(mapping, key)

    def _merged(self, node: Node, key: Key) -> Iterator[tuple[ScalarNode, Node]]:
        self._count()
        if not isinstance(node, MappingNode):
            self._problems.add((*key, "<<"), "a mapping", _written(node), line=_line(node))
        elif any(node is outer for outer in self._open):
            self._problems.add((*key, "<<"), "a mapping", "an alias of a value that contains it", line=_line(node))
        else:
            self._open.append(node)
            yield from self._entries(node, key)
            self._open.pop()


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _written(node: Node) -> str:
    if isinstance(node, ScalarNode):
        if node.tag == _NULL:
            return "nothing"
        return repr(_shorten(node.value)) if node.tag == _TEXT else _shorten(node.value)
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def _short_tag(node: Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")


def _shorten(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
