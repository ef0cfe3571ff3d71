"""Finds the upstream names that this engine imports or mentions in strings, as targets with the file that uses them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

UPSTREAM = ("sglang", "kvcached", "torch_memory_saver")
_ENGINE = Path(__file__).parent.parent
_DOTTED = re.compile(rf"({'|'.join(UPSTREAM)})(\.\w+)+")


def used() -> dict[str, str]:
    """The using file by target, in the order of files."""
    found: dict[str, str] = {}
    for file in sorted(_ENGINE.rglob("*.py")):
        if Path(__file__).parent not in file.parents:
            for target in _targets(ast.parse(file.read_text())):
                found.setdefault(target, str(file.relative_to(_ENGINE)))
    return found


def _targets(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (it.name for it in node.names if it.name.partition(".")[0] in UPSTREAM)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UPSTREAM:
            yield from (f"{node.module}:{it.name}" for it in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _DOTTED.fullmatch(node.value):
            module, _, name = node.value.rpartition(".")
            yield f"{module}:{name}"
