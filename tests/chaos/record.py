"""What came of each fault: a line of a file, which a later run adds to, and the sum of all lines as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct


class Record(Struct, frozen=True, kw_only=True):
    """Of one fault; requests are those that have ended since the fault before was over."""

    engine: str
    seed: int
    number: int
    kind: str
    victim: str
    """Empty: there was none, and nothing has happened."""
    seconds: float
    requests: int
    ended: int
    """Streams, by an error event, since their worker had ended."""
    refused: int
    """With 503, since their model could not be brought up."""
    lost: int
    wrong: int
    restarted: int
    """Workers."""
    violations: tuple[str, ...] = ()


COLUMNS = ("faults", "no victim", "requests", "restarted", "ended", "refused", "lost", "wrong", "violations")


class Records:
    """All so far, and the file that has them; without one they are forgotten."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_bytes().splitlines() if file is not None and file.exists() else []
        self.all = [msgspec.json.decode(line, type=Record) for line in lines]

    def add(self, record: Record) -> None:
        self.all.append(record)
        if self._file is not None:
            with self._file.open("ab") as opened:
                opened.write(msgspec.json.encode(record) + b"\n")

    def next_number(self, engine: str, seed: int) -> int:
        return 1 + max((it.number for it in self.all if (it.engine, it.seed) == (engine, seed)), default=-1)


def table(records: Sequence[Record]) -> str:
    names = sorted({(it.engine, it.kind) for it in records})
    rows = [(f"{e}: {k}", _sums(it for it in records if (it.engine, it.kind) == (e, k))) for e, k in names]
    rows.append(("all", _sums(records)))
    lines = [f"{'':32}" + "".join(f"{column:>11}" for column in COLUMNS)]
    lines += [f"{name:32}" + "".join(f"{number:>11}" for number in numbers) for name, numbers in rows]
    return "\n".join(lines)


def _sums(records: Iterable[Record]) -> list[int]:
    records = list(records)
    hit = [it for it in records if it.victim]
    counted = [(it.requests, it.restarted, it.ended, it.refused, it.lost, it.wrong) for it in records]
    sums = [sum(column) for column in zip(*counted, strict=True)]
    return [len(hit), len(records) - len(hit), *sums, sum(len(it.violations) for it in records)]
