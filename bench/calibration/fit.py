"""Fits a calibration to measurements: non-negative least squares of relative errors. Pure."""

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
"""Maximum iterations of choosing the longer of two times and fitting again."""

UNEVEN = "uneven"
"""The part with contexts of different lengths."""
MAY_NOT_COUNT = {"longest KV bytes"}
"""Terms that may turn out as zero."""
AT_ONCE = 1e15
"""Bytes per second for something that takes no time."""
Counts = Mapping[str, float]
"""How often each term counts."""
Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Either:
    """Two times, the longer of which counts."""

    one: Counts
    other: Counts


@dataclass(frozen=True)
class Sample:
    """A measurement and the terms it consists of."""

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
        """Relative error."""
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
        """Mean absolute relative error."""
        return statistics.fmean(abs(point.error) for point in self.points)

    @property
    def quality(self) -> str:
        """The quality of the fit in words."""
        worst = self.worst
        return f"off by {self.mean_error:.0%} on average, at most by {abs(worst.error):.0%} ({worst.words})"


@dataclass(frozen=True)
class Fits:
    prefill: LeastSquaresFit
    decode: LeastSquaresFit
    per_neighbour: float


def fit(measured: Measurements) -> Fits:
    """Fit all terms. Raises: StudyError if there are too few measurements or they contradict the formulas."""
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
    """Yields each step's tokens and the number of tokens before them."""
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
    """The terms of `simulator.calibration.DecodeCost`; `uneven` are steps with contexts of different lengths.

    Raises:
        StudyError: there are too few measurements, or they contradict the formula.
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
    """Mean relative slowdown of an engine per other busy engine, over all of `together`. Raises: StudyError."""
    shares = [(slow - 1) / (len(them.members) - 1) for them in together for slow in _slowdowns(them.members)]
    if not shares:
        raise StudyError("no two engines were measured together")
    return max(0.0, statistics.fmean(shares))


def by_load(pairs: Sequence[Together]) -> dict[tuple[str, str], float]:
    """Mean slowdown over all sizes, by an engine's own load and the other's."""
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
    """Samples as matrices with one column per term; `owners` maps pairs of times to samples."""

    seconds: Array
    always: Array
    ones: Array
    others: Array
    owners: npt.NDArray[np.int64]

    def counts(self, other: Mask) -> Array:
        """Counts of all terms per sample; `other` selects the pairs whose second time is the longer one."""
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
    """Candidate solutions. Which of two times is longer depends on the terms, which depend on that choice. So start
    from different thresholds for the choice, fit, then choose again by the fitted terms until nothing changes."""
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
    """Names of all terms, in order of appearance."""
    found: dict[str, None] = {}
    for sample in samples:
        for counts in (sample.always, *(it for pair in sample.longer for it in (pair.one, pair.other))):
            found.update(dict.fromkeys(counts))
    return list(found)


def _matrix(rows: Sequence[Counts], names: Sequence[str]) -> Array:
    return np.array([[row.get(name, 0.0) for name in names] for row in rows], dtype=np.float64)


def factors_to_one(matrix: Array) -> Array:
    """The non-negative factors with which `matrix` comes closest to ones. Tries all sets of zero factors, as there are
    at most five."""
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
    """Converts seconds per operation or byte into rates per second. Raises: StudyError."""
    terms = {}
    for name, value in found.terms.items():
        if name in MAY_NOT_COUNT and value <= 0:
            terms[rates[name]] = AT_ONCE
            continue
        if name in rates and value <= 0:
            raise StudyError(f"the measurements of {what} do not grow with {name}: no rate follows from them")
        terms[rates.get(name, name)] = 1 / value if name in rates else value
    return LeastSquaresFit(terms, found.points)
