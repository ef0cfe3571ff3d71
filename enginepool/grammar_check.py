"""A process that compiles grammars to find out whether they are valid.

For each input line, a JSON array of kind and grammar, it prints a line with the problem as a JSON string, empty if the
grammar is valid. The caller kills the process if a grammar takes too long.

    python -m enginepool.grammar_check
"""

from __future__ import annotations

import json
import os
import resource
import sys
from functools import cache

import msgspec
from llguidance import LLMatcher, LLTokenizer, StructTag, TokenizerWrapper, grammar_from

from enginepool import process

MEMORY = 2 * 2**30
"""Limit of the address space, in bytes."""
NICENESS = 10
"""Lets decode steps go first."""
END = 256
_WITHOUT_TOKENS = ("json_schema", "regex")
"""Kinds of grammar that cannot refer to tokens."""


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
    """Compile a grammar as SGLang 0.5.17 does (constrained/llguidance_backend.py); returns the problem, or "".

    Errors of grammars that may refer to tokens are ignored, since the model's tokens are not known here; SGLang will
    report them.
    """
    try:
        matcher = LLMatcher(_bytes(), _serialized(kind, grammar), log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # llguidance compiles lazily; this forces most of the work
    except Exception:  # SGLang will run into the same error and report it
        return ""
    return matcher.get_error().partition("<state>")[0].strip() if kind in _WITHOUT_TOKENS else ""


class _Bytes:
    """A tokenizer with one token per byte and an end token."""

    eos_token_id, bos_token_id = END, None
    tokens = (*(bytes((value,)) for value in range(END)), b"<end>")
    special_token_ids = (END,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


@cache
def _bytes() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(_Bytes()), slices=[])


def _serialized(kind: str, grammar: str) -> str:
    serialized: str
    if kind == "json_schema":
        serialized = LLMatcher.grammar_from_json_schema(grammar, defaults={"whitespace_flexible": True})
    elif kind in ("regex", "ebnf"):
        serialized = grammar_from(kind, grammar)
    else:
        tag = json.loads(grammar)
        serialized = StructTag.to_grammar([_tag(structure, tag["triggers"]) for structure in tag["structures"]])
    return serialized


def _tag(structure: dict[str, str], triggers: list[str]) -> StructTag:
    begin = structure["begin"]
    trigger = next((it for it in triggers if begin.startswith(it)), triggers[0])
    return StructTag(begin=begin, grammar=structure["schema"], end=structure["end"], trigger=trigger)


if __name__ == "__main__":
    main()
