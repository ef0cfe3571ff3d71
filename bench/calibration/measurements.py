"""The measurements of a calibration run, as stored in its JSON file. Times in seconds, lengths in tokens."""

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
    """A load for an engine: repeated rounds of `batch` prompts with `tokens` new tokens each."""

    name: str
    batch: int
    prompt: int
    tokens: int


class PrefillPoint(Struct, frozen=True):
    """A prompt with a single output token."""

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
    """Seconds per step, by round."""

    @property
    def median(self) -> float:
        return statistics.median(self.steps)

    @property
    def context(self) -> float:
        """Total context tokens of all requests in the middle of a round."""
        return self.batch * (self.prompt + self.tokens / 2)


class Alone(Struct, frozen=True):
    """Rounds of a load while all other engines are idle."""

    model: str
    load: str
    seconds: list[float]


class Member(Struct, frozen=True):
    """One of several busy engines; `seconds` are its rounds while all others were busy."""

    model: str
    load: str
    seconds: list[float]
    slowdown: float | None
    """Median relative to that of the engine alone; None if no round lay within the time in which all were busy."""


class Together(Struct, frozen=True):
    members: list[Member]


class Measurements(Struct, kw_only=True):
    machine: dict[str, Any]
    versions: dict[str, str]
    models: dict[str, dict[str, Any]]
    """Contents of their config.json."""
    chunk: int
    """Maximum prompt tokens per prefill step."""
    loads: list[RepeatedLoad]
    prefill: list[PrefillPoint] = []
    decode: list[DecodePoint] = []
    alone: list[Alone] = []
    together: list[Together] = []
    workers: WorkerRows = msgspec.field(default_factory=WorkerRows)
    """Measurements of Prism's own workers; all the others are of unmodified SGLang engines."""

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
    """Read the measurements in a run's file, ignoring its fits. Raises: StudyError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Measurements)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a file of bench.calibration: {error}") from error
