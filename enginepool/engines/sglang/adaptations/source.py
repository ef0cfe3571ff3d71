"""Inspects the source of installed packages without importing them: whether a name exists, its parameters, its text.

A target is `module`, `module:Class.name`, or, with expected parameters, `module:function(a, b)`. With `...` as the last
parameter, further ones are allowed if they have defaults. Names from compiled modules are assumed to exist.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TARGET = re.compile(r"(?P<module>[\w.]+)(:(?P<name>[\w.]+)(\((?P<takes>.*)\))?)?")
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Definition = _Function | ast.ClassDef | ast.Assign | ast.AnnAssign
_MOST_HOPS = 10
"""Maximum length of a chain of re-exports to follow."""


@dataclass(frozen=True)
class SourceModule:
    """A module; `tree` is None if there is no source."""

    name: str
    path: Path
    tree: ast.Module | None
    text: str


_COMPILED = SourceModule("", Path(), None, "")


@dataclass(frozen=True)
class FoundName:
    """A definition; `node` is None for a whole module."""

    module: SourceModule
    node: _Definition | None = None
    in_class: bool = False


def installed(target: str) -> bool:
    """Whether the package of a target is installed."""
    return importlib.util.find_spec(package(target)) is not None


def package(target: str) -> str:
    """The top-level package of a target."""
    return re.split(r"[.:]", target, maxsplit=1)[0]


def problem(target: str) -> str:
    """How a target has changed; empty if it is as expected."""
    matched = _TARGET.fullmatch(target)
    assert matched is not None, target
    found = _find(matched["module"], matched["name"])
    if found is None:
        return f"{target.partition('(')[0]} is gone"
    if matched["takes"] is None:
        return ""
    return _differs(target.partition("(")[0], _parameters(found), matched["takes"].split(", "))


def text(target: str) -> str:
    """The source of a target; empty if it is gone."""
    module, _, name = target.partition(":")
    found = _find(module, name or None)
    if found is None:
        return ""
    if found.node is None:
        return found.module.text
    return ast.get_source_segment(found.module.text, found.node) or ""


def locate(name: str) -> Path | None:
    """The file of a module, or the folder of a namespace package. Imports nothing, not even parent packages."""
    top, *rest = name.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        return None if spec is None or rest else Path(spec.origin or "")
    folder = Path(spec.submodule_search_locations[0], *rest)
    candidates = [folder / "__init__.py", folder.with_suffix(".py"), *folder.parent.glob(f"{folder.name}.*so"), folder]
    return next((path for path in candidates if path.exists()), None)


def _find(module_name: str, name: str | None) -> FoundName | None:
    module = _module(module_name, locate(module_name))
    if module is None:
        return None
    found: FoundName | None = FoundName(module)
    for part in name.split(".") if name else ():
        found = _attribute(found, part) if found is not None else None
    return found


@cache
def _module(name: str, path: Path | None) -> SourceModule | None:
    if path is None:
        return None
    if path.suffix == ".so":
        return _COMPILED
    content = path.read_text() if path.is_file() else ""
    return SourceModule(name, path, ast.parse(content), content)


def _attribute(found: FoundName, name: str) -> FoundName | None:
    if isinstance(found.node, ast.ClassDef):
        return _in_class(found.module, found.node, name)
    if found.node is None:
        return _in_module(found.module, name)
    return found  # an attribute of an object whose class is not known


def _in_module(module: SourceModule, name: str, hops: int = 0) -> FoundName | None:
    if module.tree is None:
        return FoundName(module)
    if hops > _MOST_HOPS:
        return None
    for statement in _statements(module.tree.body):
        found = _bound(module, statement, name, hops)
        if found is not None:
            return found
    inner = f"{module.name}.{name}"
    submodule = _module(inner, locate(inner))
    return FoundName(submodule) if submodule is not None else None


def _bound(module: SourceModule, statement: ast.stmt, name: str, hops: int) -> FoundName | None:
    """The definition that `statement` binds to `name`; None if it does not."""
    if isinstance(statement, _Definition) and name in _names(statement):
        return FoundName(module, statement)
    if isinstance(statement, ast.Import):
        return next((FoundName(_COMPILED) for it in statement.names if (it.asname or package(it.name)) == name), None)
    if not isinstance(statement, ast.ImportFrom):
        return None
    for alias in statement.names:
        if alias.name == "*" or (alias.asname or alias.name) == name:
            found = _imported(module, statement, name if alias.name == "*" else alias.name, hops)
            if found is not None:
                return found
    return None


def _imported(module: SourceModule, statement: ast.ImportFrom, name: str, hops: int) -> FoundName | None:
    parts = module.name.split(".")
    up = statement.level - (module.path.name == "__init__.py")
    base = ".".join(parts[: len(parts) - up]) if statement.level else ""
    origin = ".".join(filter(None, (base, statement.module)))
    source = _module(origin, locate(origin))
    return _in_module(source, name, hops + 1) if source is not None else FoundName(_COMPILED)


def _in_class(module: SourceModule, node: ast.ClassDef, name: str) -> FoundName | None:
    for statement in _statements(node.body):
        if isinstance(statement, _Definition) and name in _names(statement):
            return FoundName(module, statement, in_class=True)
    if any(_sets(it, name) for it in ast.walk(node)):
        return FoundName(module, ast.Assign([], ast.Constant(None)), in_class=True)
    for base in node.bases:
        parent = _in_module(module, base.id) if isinstance(base, ast.Name) else None
        if parent is not None and isinstance(parent.node, ast.ClassDef):
            found = _in_class(parent.module, parent.node, name)
            if found is not None:
                return found
    return None


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements, including those inside conditions and other blocks."""
    for statement in body:
        yield statement
        for field in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(statement, _Definition):
                inner = getattr(statement, field, ())
                yield from _statements([it for it in inner if isinstance(it, ast.stmt)])
                yield from _statements([it for part in inner for it in getattr(part, "body", ())])


def _names(statement: _Definition) -> set[str]:
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        return {it.id for target in targets for it in ast.walk(target) if isinstance(it, ast.Name)}
    return {statement.name}


def _sets(node: ast.AST, name: str) -> bool:
    """Whether the node assigns to `self.name`."""
    if not (isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store)):
        return False
    return isinstance(node.value, ast.Name) and node.value.id == "self"


def _parameters(found: FoundName) -> dict[str, bool]:
    """Parameter names, and whether they have defaults. For a class: of its constructor, or a dataclass's fields."""
    if isinstance(found.node, ast.ClassDef):
        init = _in_class(found.module, found.node, "__init__")
        return _parameters(init) if init is not None else _fields(found.node)
    if not isinstance(found.node, _Function):
        return {}
    arguments = found.node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = len(positional) - len(arguments.defaults)
    taken = {it.arg: place >= defaults for place, it in enumerate(positional)}
    taken |= {it.arg: value is not None for it, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)}
    bound = found.in_class and not any("staticmethod" in ast.unparse(it) for it in found.node.decorator_list)
    return {name: default for name, default in taken.items() if not (bound and name == positional[0].arg)}


def _fields(node: ast.ClassDef) -> dict[str, bool]:
    return {it.target.id: it.value is not None for it in node.body if _is_field(it)}  # type: ignore[attr-defined]


def _is_field(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)


def _differs(name: str, taken: dict[str, bool], wanted: list[str]) -> str:
    expected = [it for it in wanted if it not in ("", "...")]
    others = {it for it, default in taken.items() if it not in expected and not ("..." in wanted and default)}
    if not others and all(it in taken for it in expected):
        return ""
    return f"{name} takes ({', '.join(taken)})"
