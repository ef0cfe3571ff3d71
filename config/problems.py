"""Collects every problem of a registry, with its line, so that all are raised together."""

from __future__ import annotations

from pathlib import Path

from config.errors import ConfigError

Key = tuple[str | int, ...]
"""A position in the document: ("models", 2, "slo", "ttft") is models[2].slo.ttft."""


class Problems:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._lines: dict[Key, int] = {(): 1}
        self._found: list[tuple[int, Key, str]] = []

    def set_line(self, key: Key, line: int) -> None:
        """Remember which line `key` is on."""
        self._lines[key] = line

    def add(self, key: Key, expected: str, got: str, *, line: int | None = None) -> None:
        """Record that `key` is wrong. Without `line`, the key's known line is used, or that of its nearest parent."""
        self._found.append((line or self._line(key), key, f"expected {expected}, got {got}"))

    def spoilt(self, *keys: Key) -> bool:
        """Whether a problem was recorded at, inside or around one of `keys`, so that rules about them are moot."""
        return any(_related(key, found) for key in keys for _, found, _ in self._found)

    def raise_if_any(self) -> None:
        """
        Raises:
            ConfigError: with every problem, ordered by line.
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
    """The key as text, such as models[2].slo.ttft."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{_printable(part)}" for part in key).removeprefix(".")


def _printable(part: str) -> str:
    return part if part.isprintable() and part else repr(part)


def _related(one: Key, other: Key) -> bool:
    shared = min(len(one), len(other))
    return one[:shared] == other[:shared]
