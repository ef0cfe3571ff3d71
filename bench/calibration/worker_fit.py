"""Fits calibration entries to measurements of Prism's own workers. Pure.

Entries are fitted one after the other, each using those before it, to what remains of a time without its kernels.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from msgspec.structs import replace

from bench.calibration.fit import AT_ONCE, Fits, factors_to_one
from bench.calibration.measurements import Measurements
from bench.calibration.sharing_fit import FittedEntry, fit_mps, fit_slices
from bench.calibration.worker_rows import SPLITS, FirstTokens, Stalls, Steps, WorkerRows
from simulator.calibration import Calibration
from simulator.costs import Costs

BOUND_BY_HOST = 1.08
"""A step that takes longer than its kernels by this factor is bound by its host."""

Models = Mapping[str, Costs]
Row = TypeVar("Row", Steps, Stalls, FirstTokens)


@dataclass(frozen=True)
class WorkerFits:
    found: dict[str, FittedEntry]
    """Fitted entries by name; those not measured are missing."""
    calibration: Calibration
    """The calibration updated with these entries."""


def fit_workers(measured: Measurements, fits: Fits, before: Calibration) -> WorkerFits:
    """Fit all entries; `before` supplies those that were not measured."""
    calibration = replace(
        before,
        prefill=replace(before.prefill, **fits.prefill.terms),
        decode=replace(before.decode, **fits.decode.terms),
    )
    found: dict[str, FittedEntry] = {}
    for entry, find in FITS.items():
        it = find(measured.workers, calibration, costs_of(measured, calibration))
        if it is not None:
            found[entry] = it
            changed = replace(getattr(calibration, entry), **it.terms, measured=True, source=it.words)
            calibration = replace(calibration, **{entry: changed})
    return WorkerFits(found, calibration)


def costs_of(measured: Measurements, calibration: Calibration) -> dict[str, Costs]:
    return {name: Costs(calibration, shape, shape.weight_bytes) for name, shape in measured.shapes.items()}


# --- one engine -----------------------------------------------------------------------------------------------


def fit_decode_host(rows: WorkerRows, calibration: Calibration, models: Models) -> FittedEntry | None:
    """Fitted to the steps that take longer than their kernels."""
    plain = [row for row in rows.steps if row.kv_splits == SPLITS]
    bound = [row for row in plain if row.seconds > BOUND_BY_HOST * kernels(row, models)]
    if not plain:
        return None
    names = ("seconds", "seconds_per_request", "seconds_beside")
    if not bound:
        return FittedEntry(dict.fromkeys(names, 0.0), f"{_where(plain)}: no step took longer than its kernels.")
    counts = np.array([[1.0, row.batch, float(row.beside > 0)] for row in bound])
    seconds = np.array([row.seconds for row in bound])
    terms = factors_to_one(counts / seconds[:, None])
    off = statistics.fmean(abs(counts @ terms / seconds - 1))
    words = f"{_where(plain)}; of {len(plain)} steps the {len(bound)} that take longer than their kernels, off by "
    return FittedEntry(dict(zip(names, map(float, terms), strict=True)), f"{words}{off:.0%} on average.")


def kernels(row: Steps, models: Models) -> float:
    """Seconds of a step's kernels."""
    return models[row.model].decode(row.batch, round(row.context), row.longest)


def fit_prefill_host(rows: WorkerRows, calibration: Calibration, models: Models) -> FittedEntry | None:
    """The mean of stalls without their kernels."""
    stalls = _among_others(rows.stalls)
    if not stalls:
        return None
    left = [row.median - _prefill(models[row.model], row.tokens) for row in stalls]
    words = f"{_stalls(stalls)}; {_ms(min(left))} to {_ms(max(left))} besides their kernels, the mean."
    return FittedEntry({"seconds": max(0.0, statistics.fmean(left))}, words)


def _stalls(stalls: Sequence[Stalls]) -> str:
    tokens = sorted({row.tokens for row in stalls})
    return (
        f"{_models(stalls)} with {_beside(stalls)}: gaps in a stream with a prefill of {tokens[0]} to {tokens[-1]} "
        f"tokens in them, less its other gaps"
    )


def fit_front(rows: WorkerRows, calibration: Calibration, models: Models) -> FittedEntry | None:
    """A line, by prompt tokens, through first-token times without their prefill step."""
    firsts = _among_others(rows.firsts)
    if not firsts:
        return None
    host = calibration.prefill_host.seconds
    left = [row.median - _prefill(models[row.model], row.tokens) - host for row in firsts]
    seconds, per_token = _line([(row.tokens, rest) for row, rest in zip(firsts, left, strict=True)])
    words = f"{_models(firsts)} with {_beside(firsts)}: first tokens of an idle engine, less its prefill step; "
    words += f"{len(firsts)} points from {_ms(min(left))} to {_ms(max(left))}, a line by tokens."
    return FittedEntry({"seconds": seconds, "seconds_per_token": per_token}, words)


def fit_first_use(rows: WorkerRows, calibration: Calibration, models: Models) -> FittedEntry | None:
    """A line by bytes of weights through the additional time of first uses."""
    uses: dict[str, list[float]] = defaultdict(list)
    for row in rows.first_uses:
        if not row.rehearsed:
            uses[row.model].append(row.first - row.later)
    if not uses:
        return None
    medians = {model: statistics.median(seconds) for model, seconds in uses.items()}
    seconds, per_byte = _line([(models[model].weight_bytes, it) for model, it in medians.items()])
    each = ", ".join(f"{model} {_ms(it)}" for model, it in medians.items())
    words = f"a process's first token of a model, less later ones, in the median: {each}; a line by bytes."
    return FittedEntry({"seconds": seconds, "bytes_per_s": 1 / per_byte if per_byte else AT_ONCE}, words)


Find = Callable[[WorkerRows, Calibration, Models], FittedEntry | None]
FITS: dict[str, Find] = {
    "decode_host": fit_decode_host,
    "prefill_host": fit_prefill_host,
    "front": fit_front,
    "first_use": fit_first_use,
    "time_slices": fit_slices,
    "mps": fit_mps,
}


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of a least-squares line, neither below zero."""
    counts = np.array([[1.0, x] for x, _ in points])
    values = np.array([y for _, y in points])
    begin, rise = np.linalg.lstsq(counts, values, rcond=None)[0] if len({x for x, _ in points}) > 1 else (0.0, -1.0)
    if rise < 0:
        begin, rise = float(values.mean()), 0.0
    elif begin < 0:
        begin, rise = 0.0, float((counts[:, 1] * values).sum() / np.square(counts[:, 1]).sum())
    return max(0.0, float(begin)), float(rise)


def _prefill(costs: Costs, tokens: int) -> float:
    """Seconds of a prefill step's kernels."""
    return costs.prefill(costs.prefill_work(tokens, 0))


def _among_others(rows: Sequence[Row]) -> list[Row]:
    """The rows measured while other models were active, as in a pool; all rows if there are none."""
    return [row for row in rows if row.beside] or list(rows)


# --- in words -------------------------------------------------------------------------------------------------


def _where(rows: Sequence[Steps]) -> str:
    batches = sorted({row.batch for row in rows})
    return f"{_models(rows)} in Prism's own workers, batches of {batches[0]} to {batches[-1]}, {_beside(rows)}"


def _models(rows: Iterable[Row]) -> str:
    return ", ".join(dict.fromkeys(row.model for row in rows))


def _beside(rows: Iterable[Row]) -> str:
    others = " or ".join(str(number) for number in sorted({row.beside for row in rows}))
    return f"{others} other models active and idle"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"
