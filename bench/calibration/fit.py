"""From measurements to what a calibration says: least squares in relative error, nothing below zero. Pure."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from bench.calibration.measurements import DecodePoint, Measurements, Member, PrefillPoint, Together
from bench.calibration.worker_rows import SPLITS, Steps
from config.shape import Shape
from simulator.errors import StudyError

ROUNDS = 10
"""In which the longer one of two times is looked for again, after a fit."""

UNEVEN = "uneven"
"""The part in which contexts differ."""
MAY_NOT_COUNT = {"longest KV bytes"}
"""In some machines' measurements."""
AT_ONCE = 1e15
"""Bytes a second of what takes no time."""
Counts = Mapping[str, float]
"""By term: how often it counts."""
Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Either:
    """Two times of which the longer one counts."""

    one: Counts
    other: Counts


@dataclass(frozen=True)
class Sample:
    """What was measured, and of what it consists."""

    words: str
    seconds: float
    always: Counts
    longer: Sequence[Either]


@dataclass(frozen=True)
class Point:
    words: str
    measured: float
    fitted: float

    @property
    def error(self) -> float:
        """Relative."""
        return self.fitted / self.measured - 1


@dataclass(frozen=True)
class LeastSquaresFit:
    terms: dict[str, float]
    points: list[Point]

    @property
    def worst(self) -> Point:
        return max(self.points, key=lambda point: abs(point.error))

    @property
    def mean_error(self) -> float:
        """Relative, whichever its sign."""
        return statistics.fmean(abs(point.error) for point in self.points)

    @property
    def quality(self) -> str:
        """In words."""
        worst = self.worst
        return f"off by {self.mean_error:.0%} on average, at most by {abs(worst.error):.0%} ({worst.words})"


@dataclass(frozen=True)
class Fits:
    prefill: LeastSquaresFit
    decode: LeastSquaresFit
    per_neighbour: float


def fit(measured: Measurements) -> Fits:
    """Raises: StudyError when there are too few measurements, or they contradict the formulas."""
    shapes = measured.shapes
    return Fits(
        fit_prefill(measured.prefill, shapes, measured.chunk),
        fit_decode(measured.decode, shapes, [row for row in measured.workers.steps if row.part == UNEVEN]),
        per_neighbour(measured.together),
    )


# --- prefill --------------------------------------------------------------------------------------------------


def fit_prefill(points: Sequence[PrefillPoint], shapes: Mapping[str, Shape], chunk: int) -> LeastSquaresFit:
    """The terms of `simulator.calibration.PrefillCost`. Raises: StudyError."""
    samples = [
        Sample(
            f"{point.model}, {point.tokens} tokens",
            point.median,
            {},
            [_prefill_step(shapes[point.model], *step) for step in _steps(point.tokens, chunk)],
        )
        for point in points
    ]
    return _as_rates(_fit(samples), {"flops": "flops_per_s", "attention flops": "attention_flops_per_s"}, "prefill")


def _steps(tokens: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Tokens of each step, and those before them."""
    for before in range(0, tokens, chunk):
        yield min(chunk, tokens - before), before


def _prefill_step(shape: Shape, tokens: int, before: int) -> Either:
    return Either(
        {"seconds_per_layer": shape.layers},
        {
            "flops": 2 * shape.active_parameters * tokens,
            "attention flops": shape.attention_flops * tokens * (before + tokens / 2),
        },
    )


# --- decode ---------------------------------------------------------------------------------------------------


def fit_decode(
    points: Sequence[DecodePoint], shapes: Mapping[str, Shape], uneven: Sequence[Steps] = ()
) -> LeastSquaresFit:
    """The terms of `simulator.calibration.DecodeCost`; `uneven` are steps of contexts of different lengths.

    Raises:
        StudyError: too few, or they contradict the formula.
    """
    rates = {
        "weight bytes": "weight_bytes_per_s",
        "KV bytes": "kv_bytes_per_s",
        "longest KV bytes": "longest_kv_bytes_per_s",
    }
    samples = [_decode_sample(point, shapes[point.model]) for point in points]
    samples += [_uneven_sample(row, shapes[row.model]) for row in uneven if row.kv_splits == SPLITS]
    return _as_rates(_fit(samples), rates, "decode")


def _uneven_sample(row: Steps, shape: Shape) -> Sample:
    words = f"{row.model}, {row.batch} contexts, the longest of {max(row.contexts)}"
    return Sample(words, row.seconds, *_decode_terms(shape, row.batch, row.context, row.longest))


def _decode_sample(point: DecodePoint, shape: Shape) -> Sample:
    words = f"{point.model}, batch {point.batch}, prompts of {point.prompt}"
    terms = _decode_terms(shape, point.batch, point.context, point.context / point.batch)
    return Sample(words, point.median, *terms)


def _decode_terms(shape: Shape, batch: int, context: float, longest: float) -> tuple[Counts, Sequence[Either]]:
    always = {
        "seconds_per_layer": shape.layers,
        "seconds_per_request": batch,
        "weight bytes": shape.bytes_read(batch),
    }
    attention = Either({"KV bytes": shape.kv_bytes * context}, {"longest KV bytes": shape.kv_bytes * longest})
    return always, [attention]


# --- several at once ------------------------------------------------------------------------------------------


def per_neighbour(together: Sequence[Together]) -> float:
    """By how much an engine is slower for each other one, on average over all in `together`. Raises: StudyError."""
    shares = [(slow - 1) / (len(them.members) - 1) for them in together for slow in _slowdowns(them.members)]
    if not shares:
        raise StudyError("no two engines were measured together")
    return max(0.0, statistics.fmean(shares))


def by_load(pairs: Sequence[Together]) -> dict[tuple[str, str], float]:
    """Mean slow-down by an engine's own load and the other's, over all sizes."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for pair in pairs:
        for own, other in (pair.members, reversed(pair.members)):
            if own.slowdown is not None:
                found[own.load, other.load].append(own.slowdown)
    return {loads: statistics.fmean(slow) for loads, slow in found.items()}


def _slowdowns(members: Sequence[Member]) -> list[float]:
    return [member.slowdown for member in members if member.slowdown is not None]


# --- least squares --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _System:
    """Samples as matrices with a column for each term; `owners` are the samples to which the pairs of times belong."""

    seconds: Array
    always: Array
    ones: Array
    others: Array
    owners: npt.NDArray[np.int64]

    def counts(self, other: Mask) -> Array:
        """Of all terms for each sample, if of its pairs these have the other time as the longer one."""
        counts = self.always.copy()
        np.add.at(counts, self.owners, np.where(other[:, None], self.others, self.ones))
        return counts

    def longer(self, terms: Array) -> Mask:
        return np.asarray(self.others @ terms > self.ones @ terms)

    def fitted(self, terms: Array) -> Array:
        """Seconds."""
        return self.counts(self.longer(terms)) @ terms

    def off(self, terms: Array) -> float:
        return float(np.square(self.fitted(terms) / self.seconds - 1).sum())


def _fit(samples: Sequence[Sample]) -> LeastSquaresFit:
    names = _names(samples)
    if len(samples) < len(names):
        raise StudyError(f"{len(samples)} measurements are too few to find {', '.join(names)}")
    system = _system(samples, names)
    best = min(_candidates(system), key=system.off)
    points = [
        Point(sample.words, sample.seconds, float(value))
        for sample, value in zip(samples, system.fitted(best), strict=True)
    ]
    return LeastSquaresFit(dict(zip(names, map(float, best), strict=True)), points)


def _candidates(system: _System) -> Iterator[Array]:
    """Which of two times is the longer one depends on the terms, and they on that. So it is tried: the other one is,
    where it counts for so many times the one or more; and then where the terms that follow say."""
    shares = system.others.sum(axis=1) / system.ones.sum(axis=1)
    for share in sorted({*shares, float("inf")}):
        other = shares >= share
        for _ in range(ROUNDS):
            terms = factors_to_one(system.counts(other) / system.seconds[:, None])
            yield terms
            before, other = other, system.longer(terms)
            if (other == before).all():
                break


def _system(samples: Sequence[Sample], names: Sequence[str]) -> _System:
    pairs = [pair for sample in samples for pair in sample.longer]
    return _System(
        seconds=np.array([sample.seconds for sample in samples]),
        always=_matrix([sample.always for sample in samples], names),
        ones=_matrix([pair.one for pair in pairs], names),
        others=_matrix([pair.other for pair in pairs], names),
        owners=np.array([place for place, sample in enumerate(samples) for _ in sample.longer]),
    )


def _names(samples: Sequence[Sample]) -> list[str]:
    """Of all terms, in the order in which they are met."""
    found: dict[str, None] = {}
    for sample in samples:
        for counts in (sample.always, *(it for pair in sample.longer for it in (pair.one, pair.other))):
            found.update(dict.fromkeys(counts))
    return list(found)


def _matrix(rows: Sequence[Counts], names: Sequence[str]) -> Array:
    return np.array([[row.get(name, 0.0) for name in names] for row in rows], dtype=np.float64)


def factors_to_one(matrix: Array) -> Array:
    """The factors, none below zero, with which `matrix` comes closest to ones. By trying which of them are zero: there
    are five at most."""
    count = matrix.shape[1]
    size = np.abs(matrix).max(axis=0)
    scaled = matrix / np.where(size > 0, size, 1.0)
    best, least = np.zeros(count), float("inf")
    for number in range(1, count + 1):
        for chosen in combinations(range(count), number):
            some = np.linalg.lstsq(scaled[:, chosen], np.ones(len(matrix)), rcond=None)[0]
            rest = float(np.square(scaled[:, chosen] @ some - 1).sum())
            if (some >= 0).all() and rest < least:
                best, least = np.zeros(count), rest
                best[list(chosen)] = some
    return best / np.where(size > 0, size, 1.0)


def _as_rates(found: LeastSquaresFit, rates: Mapping[str, str], what: str) -> LeastSquaresFit:
    """Seconds for each operation or byte become so many a second."""
    terms = {}
    for name, value in found.terms.items():
        if name in MAY_NOT_COUNT and value <= 0:
            terms[rates[name]] = AT_ONCE
            continue
        if name in rates and value <= 0:
            raise StudyError(f"the measurements of {what} do not grow with {name}: no rate follows from them")
        terms[rates.get(name, name)] = 1 / value if name in rates else value
    return LeastSquaresFit(terms, found.points)
