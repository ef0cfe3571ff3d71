"""Recorded runs are decided again as they were: `record.py` made them, and says when to make new ones."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from scheduler.replay.recorded import Recording
from scheduler.replay.replay import replay
from tests.scheduler.record import FOLDER, runs, separate

FILES = sorted(FOLDER.glob("*.jsonl.gz"))


def test_every_run_is_recorded() -> None:
    assert {file.name.removesuffix(".jsonl.gz") for file in FILES} == {name for name, _ in runs()}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_same_events_lead_to_the_same_decisions(file: Path) -> None:
    with gzip.open(file) as lines:
        for number, run in enumerate(separate(lines)):
            recording = Recording(f"{file.name}, run {number}", run)
            comparison = replay(recording.header.scheduler(), recording)
            assert comparison.difference is None
            assert comparison.events == len(run) - 1
