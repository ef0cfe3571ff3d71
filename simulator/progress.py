"""What a person sees on stderr while a measurement runs."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def say_again(line: str) -> None:
    """Progress within a step: one line that is written over where there is a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}\r", end="", file=sys.stderr, flush=True)
