"""Fits a calibration's `time_slices` and `mps` to measurements of several engines sharing a GPU. Pure.

The model is that of `simulator.sharing`; its few constants are found by grid search.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.calibration.worker_rows import Busy, EngineGroup, FirstTokens, WorkerRows
from simulator.calibration import Calibration
from simulator.costs import Costs
from simulator.sharing import Contention, MpsKernelSharing, Sharing, StepLoad, TimeSlicedSharing

SLICES = np.arange(0.5e-3, 4.01e-3, 0.25e-3)
SWITCHES = np.arange(0.0, 0.61e-3, 0.05e-3)
SHARES = np.arange(0.3, 1.51, 0.01)
"""The grids; slices and switches are refined once, ten times as fine, around the best values."""

Models = Mapping[str, Costs]
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FittedEntry:
    """A fitted entry: its terms and their source."""

    terms: dict[str, float]
    words: str


def fit_slices(rows: WorkerRows, calibration: Calibration, models: Models) -> FittedEntry | None:
    groups = [group for group in rows.groups if not group.mps]
    if not _decoding(groups):
        return None
    launch, known = _launch(groups, rows.firsts, models, calibration.time_slices.launch_per_neighbour)

    def off(slice_seconds: float, switch_seconds: float) -> float:
        return _off(groups, models, TimeSlicedSharing(slice_seconds, switch_seconds, launch))

    coarse = _best(off, SLICES, SWITCHES)
    fine = _best(off, *(_around(*it) for it in zip(coarse, (SLICES, SWITCHES), strict=True)))
    found = TimeSlicedSharing(*fine, launch)
    terms = {"slice_seconds": fine[0], "switch_seconds": fine[1], "launch_per_neighbour": launch}
    return FittedEntry(terms, _words(groups, models, found) + known)


def fit_mps(rows: WorkerRows, calibration: Calibration, models: Models) -> FittedEntry | None:
    groups = [group for group in rows.groups if group.mps]
    if not _decoding(groups):
        return None
    launch, known = _launch(groups, rows.firsts, models, calibration.mps.launch_per_neighbour)
    share = min(SHARES, key=lambda it: _off(groups, models, MpsKernelSharing(it, launch)))
    found = MpsKernelSharing(float(share), launch)
    return FittedEntry(
        {"wait_share": float(share), "launch_per_neighbour": launch}, _words(groups, models, found) + known
    )


def _best(off: Callable[[float, float], float], ones: Iterable[float], others: Iterable[float]) -> tuple[float, float]:
    tried = ((float(one), float(other)) for one in ones for other in others if one > 0)
    return min(tried, key=lambda it: off(*it))


def _around(value: float, tried: Array) -> Array:
    """A finer grid around `value`, with a tenth of the spacing."""
    return np.asarray(np.clip(value + (tried - tried.mean()) / 10, 0, None))


def predicted(member: Busy, group: EngineGroup, models: Models, sharing: Sharing) -> float:
    """Predicted seconds of a member's step, or first token, among the others of its group."""
    others = [_load(other, models) for other in group.members if other is not member]
    beside, costs = Contention(sharing, [others], resident=True), models[member.model]
    if member.batch:
        step, _ = costs.contended_decode(member.batch, round(member.batch * _context(member)), _context(member), beside)
        return step.first
    step_seconds = costs.contended_prefill(costs.prefill_work(member.prompt, 0), beside)
    return costs.front(member.prompt) + step_seconds + costs.prefill_host


def _load(member: Busy, models: Models) -> StepLoad:
    costs = models[member.model]
    if not member.batch:
        return costs.prefill_load(costs.prefill_work(member.prompt, 0))
    context = round(member.batch * _context(member))
    return costs.decode_load(costs.decode(member.batch, context), member.batch, context, resident=True)


def _context(member: Busy) -> float:
    return member.prompt + member.said


def _decoding(groups: Sequence[EngineGroup]) -> list[EngineGroup]:
    """The groups that only decode. Engines that prefill prompt after prompt are busy only part of the time, so their
    groups say nothing about sharing."""
    return [group for group in groups if all(member.batch for member in group.members)]


def _errors(groups: Sequence[EngineGroup], models: Models, sharing: Sharing) -> list[float]:
    """Relative errors."""
    return [
        predicted(member, group, models, sharing) / member.seconds - 1
        for group in _decoding(groups)
        for member in group.members
    ]


def _off(groups: Sequence[EngineGroup], models: Models, sharing: Sharing) -> float:
    return float(np.square(_errors(groups, models, sharing)).sum())


def _launch(
    groups: Sequence[EngineGroup], firsts: Sequence[FirstTokens], models: Models, before: float
) -> tuple[float, str]:
    """By which share launching a prefill takes longer for each neighbour, and where it comes from; `before`, where
    nothing says so."""
    found = []
    for group in groups:
        for member in group.members:
            alone = _alone(member, firsts)
            costs = models[member.model]
            if not member.batch and alone is not None and costs.prefill_work(member.prompt, 0) < costs.launch:
                found.append((member.seconds - alone) / costs.launch / (len(group.members) - 1))
    if not found:
        return before, " Launches beside neighbours were not among them."
    return max(0.0, statistics.fmean(found)), f" Launches: {len(found)} short prompts beside others, the mean."


def _alone(member: Busy, firsts: Sequence[FirstTokens]) -> float | None:
    """Seconds to such a prompt's first token with nobody busy beside it."""
    found = [it for it in firsts if (it.model, it.tokens) == (member.model, member.prompt)]
    return max(found, key=lambda it: it.beside).median if found else None


def _words(groups: Sequence[EngineGroup], models: Models, sharing: Sharing) -> str:
    errors = _errors(groups, models, sharing)
    mean, worst = statistics.fmean(map(abs, errors)), max(errors, key=abs)
    at_once, by = sorted({len(group.members) for group in groups}), "with MPS" if groups[0].mps else "without MPS"
    return (
        f"{len(_decoding(groups))} groups of {at_once[0]} to {at_once[-1]} of Prism's own workers decoding at once "
        f"{by}: {len(errors)} steps, off by {mean:.0%} on average, at most by {abs(worst):.0%}."
    )
