"""What a calibration run measures, as it is kept in its JSON file. Seconds, tokens."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from bench.calibration.worker_rows import WorkerRows
from config.shape import Shape, shape_of
from simulator.errors import StudyError


class RepeatedLoad(Struct, frozen=True):
    """What an engine is kept busy with: rounds of `batch` prompts, `tokens` new tokens for each."""

    name: str
    batch: int
    prompt: int
    tokens: int


class PrefillPoint(Struct, frozen=True):
    """One prompt, to its only token."""

    model: str
    tokens: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class DecodePoint(Struct, frozen=True):
    model: str
    batch: int
    prompt: int
    tokens: int
    steps: list[float]
    """Seconds of a step, in each round."""

    @property
    def median(self) -> float:
        return statistics.median(self.steps)

    @property
    def context(self) -> float:
        """Tokens of all requests together, in the middle of a round."""
        return self.batch * (self.prompt + self.tokens / 2)


class Alone(Struct, frozen=True):
    """Rounds of a load while nothing else runs."""

    model: str
    load: str
    seconds: list[float]


class Member(Struct, frozen=True):
    """One of several engines at once; `seconds` are of its rounds while all others were busy."""

    model: str
    load: str
    seconds: list[float]
    slowdown: float | None
    """Median over that alone; None if no round lay wholly within the time in which all were busy."""


class Together(Struct, frozen=True):
    members: list[Member]


class Measurements(Struct, kw_only=True):
    machine: dict[str, Any]
    versions: dict[str, str]
    models: dict[str, dict[str, Any]]
    """Their config.json."""
    chunk: int
    """Tokens of prompts that a prefill step takes."""
    loads: list[RepeatedLoad]
    prefill: list[PrefillPoint] = []
    decode: list[DecodePoint] = []
    alone: list[Alone] = []
    together: list[Together] = []
    workers: WorkerRows = msgspec.field(default_factory=WorkerRows)
    """Of Prism's own workers; all before is of SGLang's own engines."""

    @property
    def shapes(self) -> dict[str, Shape]:
        return {name: shape_of(config) for name, config in self.models.items()}

    @property
    def pairs(self) -> list[Together]:
        return [them for them in self.together if len(them.members) == 2]

    @property
    def groups(self) -> list[Together]:
        return [them for them in self.together if len(them.members) > 2]


def read_measurements(path: Path) -> Measurements:
    """What a run has written, its fits left aside. Raises: StudyError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measurements)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not what bench.calibration has measured: {error}") from error
