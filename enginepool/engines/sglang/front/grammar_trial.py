"""The process in which grammars are tried out: for each line of JSON, a kind and a grammar, one line with
what is wrong with it. What takes too long is for the other side to end.

    python -m enginepool.engines.sglang.front.grammar_trial
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterator

import msgspec
from llguidance import LLMatcher, StructTag, grammar_from

from enginepool import process

MEMORY = 2 * 2**30
"""Bytes of its address space."""
NICENESS = 10
"""So that steps go first."""
_WITHOUT_TOKENS = ("json_schema", "regex")
"""Kinds of grammars that cannot name a token."""


def main() -> None:
    process.die_with_parent(os.getppid())
    os.nice(NICENESS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("ready", flush=True)
    for line in sys.stdin.buffer:
        kind, grammar = msgspec.json.decode(line, type=tuple[str, str])
        problem = compile_it(kind, grammar)
        print(msgspec.json.encode(problem).decode(), flush=True)


def compile_it(kind: str, grammar: str) -> str:
    """As SGLang 0.5.17 does it (constrained/llguidance_backend.py); returns what is wrong with the grammar, or "".

    Without the model's tokens, a grammar that names them looks wrong; that is for SGLang to say.
    """
    try:
        problems = [LLMatcher.validate_grammar(serialized) for serialized in _serialized(kind, grammar)]
    except Exception:  # SGLang's own code meets the same
        return ""
    wrong = (problem for problem in problems if problem and not LLMatcher.is_validate_warning(problem))
    return next(wrong, "") if kind in _WITHOUT_TOKENS else ""


def _serialized(kind: str, grammar: str) -> Iterator[str]:
    if kind == "json_schema":
        yield LLMatcher.grammar_from_json_schema(grammar, defaults={"whitespace_flexible": True})
    elif kind in ("regex", "ebnf"):
        yield grammar_from(kind, grammar)
    else:
        tag = json.loads(grammar)
        yield StructTag.to_grammar([_tag(structure, tag["triggers"]) for structure in tag["structures"]])


def _tag(structure: dict[str, str], triggers: list[str]) -> StructTag:
    begin = structure["begin"]
    trigger = next((it for it in triggers if begin.startswith(it)), triggers[0])
    return StructTag(begin=begin, grammar=structure["schema"], end=structure["end"], trigger=trigger)


if __name__ == "__main__":
    main()
