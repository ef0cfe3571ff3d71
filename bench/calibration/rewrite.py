"""Updates entries of a calibration file and leaves the rest of it unchanged."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.calibration.fit import Fits
from bench.calibration.measurements import Measurements
from bench.calibration.worker_fit import WorkerFits
from simulator.calibration import read_calibration
from simulator.errors import StudyError

DIGITS = 4
NUMBER = re.compile(r"(?<=: )-?\d+(\.\d+)?(e[+-]?\d+)?(?=,?$)", re.MULTILINE)
"""A number that is the value of a key, in JSON with one line per key."""
SHARING = {"time_slices", "mps"}
"""Entries that come from the part"""
TOGETHER = "together"
Entries = dict[str, dict[str, Any]]
"""Entries of a calibration by name."""


def rewrite(path: Path, entries: Entries) -> None:
    """Replace `entries` in the calibration at `path`, which is only written if the result is valid.

    Raises:
        StudyError: the file is not a calibration, would no longer be one, or cannot be written.
    """
    read_calibration(path)
    unfinished = path.with_name(f"{path.name}.new")
    try:
        unfinished.write_text(_written({**json.loads(path.read_text()), **entries}))
        read_calibration(unfinished)
        unfinished.replace(path)
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        unfinished.unlink(missing_ok=True)


def step_entries(measured: Measurements, fits: Fits, raw: str) -> Entries:
    """`prefill` and `decode`; `raw` names the file of the measurements."""
    models = " and ".join(dict.fromkeys(point.model for point in measured.prefill))
    lengths = sorted(point.tokens for point in measured.prefill)
    batches = sorted(point.batch for point in measured.decode)
    prompts = sorted(point.prompt for point in measured.decode)
    prefill = f"{raw}: one prompt of {lengths[0]} to {lengths[-1]} tokens, {models} alone in SGLang's own engine"
    decode = f"{raw}: batches of {batches[0]} to {batches[-1]} after prompts of {prompts[0]} to {prompts[-1]} tokens, "
    decode += f"{models} alone in SGLang's own engine"
    return {
        "prefill": _entry(
            fits.prefill.terms, f"{prefill}; fitted to {len(measured.prefill)} points, {fits.prefill.quality}."
        ),
        "decode": _entry(
            fits.decode.terms, f"{decode}; fitted to {len(fits.decode.points)} points, {fits.decode.quality}."
        ),
    }


def worker_entries(workers: WorkerFits, measured: Measurements, raw: str) -> Entries:
    """The entries measured on Prism's own workers."""
    elsewhere = measured.workers.sources
    return {
        name: _entry(it.terms, " ".join([f"{raw}: {it.words}", *_sources(elsewhere, together=name in SHARING)]))
        for name, it in workers.found.items()
    }


def _sources(elsewhere: Mapping[str, str], *, together: bool) -> list[str]:
    """Sources of rows measured elsewhere, for several engines at once or for all other parts."""
    return list(dict.fromkeys(said for key, said in elsewhere.items() if key.startswith(TOGETHER) == together))


def activation_entries(path: Path) -> Entries:
    """`parked`, `blank`, `disk`, `park` and, if measured, `start`, from a result of bench.activation.

    Activations are fitted by a line through the smallest and the largest model measured in each state; for parked
    models up to the end of the copy, as they are ready before it. The other entries are medians.

    Raises:
        StudyError: the file cannot be read, or lacks two models of different sizes for a state.
    """
    try:
        figures = json.loads(path.read_bytes())
        rows = figures["rows"]
        times = {
            "parked": ("`weights_s` from parked", _times(rows, "parked", "weights_s")),
            "blank": ("`ready_s` from blank", _times(rows, "blank", "ready_s")),
            "disk": ("phase `load` from disk", _times(rows, "disk", "phases_s", "load")),
        }
        evictions = [seconds for _, seconds in _times(rows, "parked", "evict_s").values()]
        starts = [float(it["blank"]) for it in figures.get("replacements_s", ())]
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StudyError(f"{path}: not what bench.activation writes: {error!r}") from error
    entries = {name: _line(f"{path}: {what}", found) for name, (what, found) in times.items()}
    if evictions:
        entries["park"] = _pause(f"{path}: `evict_s` from parked", evictions)
    if starts:
        entries["start"] = _pause(f"{path}: `replacements_s`, from the kill of the one before", starts)
    return entries


def _times(rows: list[dict[str, Any]], state: str, *keys: str) -> dict[str, tuple[int, float]]:
    """Bytes of weights, and seconds, by model."""
    found = {}
    for row in rows:
        value: Any = row if row["state"] == state else None
        for key in keys:
            value = value and value.get(key)
        if value is not None:
            found[row["model"]] = (int(row["bytes"]), float(value))
    return found


def _line(what: str, times: Mapping[str, tuple[int, float]]) -> dict[str, Any]:
    by_size = sorted(times, key=lambda model: times[model])
    if not by_size or times[by_size[0]][0] == times[by_size[-1]][0]:
        raise StudyError(f"{what}: two models of different sizes are needed")
    (small, least), (large, most) = times[by_size[0]], times[by_size[-1]]
    if most <= least:
        raise StudyError(f"{what}: {by_size[-1]} took no longer than {by_size[0]}: no rate follows from that")
    per_byte = min((most - least) / (large - small), most / large)
    source = f"{what}, {by_size[0]} {least:.4g} s and {by_size[-1]} {most:.4g} s, a line through both."
    return _entry({"seconds": max(0.0, most - large * per_byte), "bytes_per_s": 1 / per_byte}, source)


def _pause(what: str, seconds: Sequence[float]) -> dict[str, Any]:
    source = f"{what}, {min(seconds):.4g} to {max(seconds):.4g} s, the median of {len(seconds)}."
    return _entry({"seconds": median(seconds)}, source)


def _entry(values: Mapping[str, float], source: str) -> dict[str, Any]:
    return {**{name: _rounded(value) for name, value in values.items()}, "measured": True, "source": source}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _written(content: object) -> str:
    """JSON text in which large and small numbers have exponents that are multiples of three."""
    return NUMBER.sub(_readable, json.dumps(content, indent=2)) + "\n"


def _readable(number: re.Match[str]) -> str:
    text, value = number[0], float(number[0])
    if text.isdigit() or value == 0 or 1e-4 <= abs(value) < 1e6:
        return text
    exponent = math.floor(math.log10(abs(value)) / 3) * 3
    return f"{value / 10**exponent:.12g}e{exponent}"
