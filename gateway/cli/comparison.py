"""What `prism replay` prints: how far a replay agrees with its recording."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec

from config.errors import RecordingError
from scheduler.actions import AnyAction
from scheduler.replay.recorded import Recording
from scheduler.replay.replay import Comparison, Difference, replay


def run(path: Path, *, validate: bool, as_json: bool) -> int:
    """Print how far the replay agrees with the file; returns 0 if to its end, else 1.

    Raises:
        RecordingError: the file cannot be read, or is not a recording.
    """
    try:
        with path.open("rb") as file:
            recording = Recording(str(path), file)
            comparison = replay(recording.header.scheduler(validate=validate), recording)
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror or error}") from error
    if as_json:
        print(json.dumps(_data(comparison, recording), indent=2))
    else:
        print(_text(path, comparison, recording))
    return 0 if comparison.difference is None else 1


def _data(comparison: Comparison, recording: Recording) -> dict[str, object]:
    same = comparison.difference is None
    return {"same": same, "cut_off": recording.cut_off, **msgspec.to_builtins(comparison)}


def _text(path: Path, comparison: Comparison, recording: Recording) -> str:
    lines = [f"{path}: the same after {comparison.events} events, {comparison.actions} actions"]
    if recording.cut_off:
        lines.append("The last line is cut off and was left out.")
    if comparison.difference is not None:
        lines += _describe(path, comparison.difference)
    return "\n".join(lines)


def _describe(path: Path, difference: Difference) -> list[str]:
    return [
        f"{path}:{difference.line}: at {difference.at:.6f} s {difference.event}",
        "recorded:",
        *_outcome(difference.recorded, "an error"),
        "came out:",
        *_outcome(difference.replayed, difference.error),
    ]


def _outcome(actions: Sequence[AnyAction] | None, error: str) -> list[str]:
    if actions is None:
        return [f"  {error}"]
    return [f"  {action}" for action in actions] or ["  nothing"]
