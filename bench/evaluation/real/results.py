"""The results of a comparison on disk, rewritten after every run so that an interrupted comparison loses nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from simulator.errors import StudyError

MEASURED, PREDICTED = "real", "real_predicted"
"""File names of measured results and of predictions."""


@dataclass(frozen=True, slots=True)
class Key:
    """The settings that identify a run."""

    gpus: int
    models: int
    device_memory_gib: float | None
    mps: bool
    policy: str
    trace: str
    rate_scale: float
    repeat: int

    def __str__(self) -> str:
        memory = "" if self.device_memory_gib is None else f", {self.device_memory_gib:g} GiB"
        shared = "with MPS" if self.mps else "without MPS"
        rate = "" if self.rate_scale == 1 else f", rate x{self.rate_scale:g}"
        return f"{self.policy}, {self.trace}{rate}, {shared}{memory}, run {self.repeat}"


class Results:
    """`rows` has the compared figures and `runs`, in the same order, further facts about each run.

    With `resume`, the contents of an existing file are kept. Raises: StudyError.
    """

    def __init__(self, folder: Path, name: str, about: dict[str, Any], *, resume: bool) -> None:
        self.json, self.page = folder / f"{name}.json", folder / f"{name}.md"
        self.about = about
        self.rows: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.faults: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume and self.json.exists():
                self._read()
        except (OSError, ValueError, KeyError) as error:
            raise StudyError(f"{self.json}: {error}") from error

    def has(self, key: Key) -> bool:
        wanted = asdict(key)
        return any(all(row[name] == value for name, value in wanted.items()) for row in self.rows)

    def add(self, key: Key, figures: dict[str, Any], run: dict[str, Any]) -> None:
        """Add a run: `figures` for its row, in addition to its key."""
        self.rows.append({**asdict(key), **figures})
        self.runs.append({**asdict(key), **run})
        self.write()

    def write(self) -> None:
        content = {"rows": self.rows, **self.about, "faults": self.faults, "runs": self.runs}
        unfinished = self.json.with_suffix(".json.part")
        unfinished.write_text(json.dumps(content, indent=1) + "\n")
        unfinished.replace(self.json)

    def _read(self) -> None:
        before = json.loads(self.json.read_text())
        self.rows, self.runs, self.faults = before["rows"], before["runs"], before["faults"]
        commands = [*before["commands"], *self.about["commands"]]
        self.about = {**self.about, "commands": list(dict.fromkeys(commands))}
