"""Reads CSV files, gzipped or not, and reports errors by file, line and column."""

from __future__ import annotations

import csv
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from simulator.errors import StudyError

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class CsvRow:
    """A row. Its methods parse a cell, or raise StudyError with its position and what was expected."""

    path: Path
    line: int
    cells: dict[str, str]

    def has(self, column: str) -> bool:
        return bool(self.cells[column].strip())

    def text(self, column: str) -> str:
        return self.cells[column].strip() if self.has(column) else self.wrong(column, "text")

    def seconds(self, column: str) -> float:
        return self._number(column, float, lambda value: 0 <= value < math.inf, "seconds of at least 0")

    def positive(self, column: str) -> float:
        return self._number(column, float, lambda value: 0 < value < math.inf, "a number above 0")

    def tokens(self, column: str) -> int:
        """A number of tokens, raised to 1 if it is 0, as engines know no empty prompts or answers."""
        return max(1, self._number(column, int, lambda value: value >= 0, "a whole number of tokens"))

    def _number(self, column: str, convert: Callable[[str], N], accepts: Callable[[N], bool], expected: str) -> N:
        try:
            value = convert(self.cells[column])
        except ValueError:
            self.wrong(column, expected)
        return value if accepts(value) else self.wrong(column, expected)

    def wrong(self, column: str, expected: str) -> NoReturn:
        raise StudyError(f"{self.path}:{self.line}: {column}: expected {expected}, got {self.cells[column]!r}")


def columns(path: Path) -> tuple[str, ...]:
    """The column names in the first line. Raises: StudyError."""
    return next(_lines(path))[1]


def read_rows(path: Path, expected: Sequence[str]) -> Iterator[CsvRow]:
    """Yields all rows of a file that must have at least the columns `expected`. Raises: StudyError."""
    lines = _lines(path)
    _, header = next(lines)
    missing = [name for name in expected if name not in header]
    if missing:
        raise StudyError(f"{path}:1: expected the columns {', '.join(expected)}; {', '.join(missing)} is missing")
    for line, cells in lines:
        if not cells:
            continue
        if len(cells) != len(header):
            raise StudyError(f"{path}:{line}: expected {len(header)} columns ({', '.join(header)}), got {len(cells)}")
        yield CsvRow(path, line, dict(zip(header, cells, strict=True)))


def _lines(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields numbered lines; the header, line 1, comes even if the file is empty. Raises: StudyError."""
    try:
        with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
            reader = csv.reader(file)
            yield 1, tuple(next(reader, ()))
            for cells in reader:
                yield reader.line_num, tuple(cells)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path}: cannot be read: {error}") from error
