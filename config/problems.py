"""What is wrong with a registry: every problem is collected, with its line, and raised at once."""

from __future__ import annotations

from pathlib import Path

from config.errors import ConfigError

Key = tuple[str | int, ...]
"""Where in the document: ("models", 2, "slo", "ttft") is models[2].slo.ttft."""


class Problems:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: dict[Key, int] = {(): 1}
        self._found: list[tuple[int, Key, str]] = []

    def place(self, key: Key, line: int) -> None:
        """Remember the line on which `key` stands."""
        self._lines[key] = line

    def add(self, key: Key, expected: str, got: str, *, line: int | None = None) -> None:
        """Note that `key` is wrong. Its line is the one placed, or that of what should contain it."""
        self._found.append((line or self._line(key), key, f"expected {expected}, got {got}"))

    def spoilt(self, *keys: Key) -> bool:
        """Whether something is wrong at, in or around one of `keys`: then what follows from them means nothing."""
        return any(_related(key, found) for key in keys for _, found, _ in self._found)

    def raise_if_any(self) -> None:
        """
        Raises:
            ConfigError: with every problem, in the order of the file's lines.
        """
        if self._found:
            ordered = sorted(self._found, key=lambda found: found[0])
            raise ConfigError([self._render(*found) for found in ordered])

    def _line(self, key: Key) -> int:
        while key not in self._lines:
            key = key[:-1]
        return self._lines[key]

    def _render(self, line: int, key: Key, text: str) -> str:
        return f"{self._file}:{line}: {render(key)}: {text}" if key else f"{self._file}:{line}: {text}"


def render(key: Key) -> str:
    """Such as models[2].slo.ttft."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in key).removeprefix(".")


def _printable(part: str) -> str:
    return part if part.isprintable() and part else repr(part)


def _related(one: Key, other: Key) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]
