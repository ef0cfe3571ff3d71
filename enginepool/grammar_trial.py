"""The process in which grammars are tried out: for each line of JSON, a kind and a grammar, one line with
what is wrong with it. What takes too long is for the other side to end.

    python -m enginepool.grammar_trial
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
"""Bytes of its address space."""
NICENESS = 10
"""So that steps go first."""
END = 256
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
        matcher = LLMatcher(_bytes(), _serialized(kind, grammar), log_level=0)
        if not matcher.is_error():
            matcher.compute_bitmask()  # much is worked out only now
    except Exception:  # SGLang's own code meets the same
        return ""
    return matcher.get_error().partition("<state>")[0].strip() if kind in _WITHOUT_TOKENS else ""


class _Bytes:
    """A tokenizer whose tokens are the bytes, and an end."""

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
