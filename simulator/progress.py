"""Progress messages on stderr."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def say_again(line: str) -> None:
    """Show a progress line that overwrites the previous one; prints nothing if stderr is not a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}\r", end="", file=sys.stderr, flush=True)
