"""Random gaps, lengths and requests of one model, in arrays of many at once.

All randomness is PCG64, seeded by what it is for, so that a seed gives the same trace on every machine. NumPy keeps
that generator's bits for ever and changes how it makes distributions of them rarely, and only in a feature release.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.random import PCG64, Generator
from numpy.typing import NDArray

from simulator.traces.trace import Request

Floats = NDArray[np.float64]
GapKind = Literal["gamma", "weibull"]

_P99 = NormalDist().inv_cdf(0.99)


def generator(*seed: int) -> Generator:
    """One of its own for each list of numbers of at least 0."""
    return Generator(PCG64((len(seed), *seed)))  # NumPy takes (1,) and (1, 0) for the same


@dataclass(frozen=True, slots=True)
class Gaps:
    """Times between two arrivals, in the unit of `scale`."""

    kind: GapKind
    shape: float
    scale: float

    @classmethod
    def with_cv(cls, kind: GapKind, cv: float) -> Gaps:
        """Gaps of mean 1 with a coefficient of variation above 0; 1 is Poisson."""
        if kind == "gamma":
            return cls(kind, cv**-2, cv**2)
        shape = _weibull_shape(cv)
        return cls(kind, shape, 1 / math.gamma(1 + 1 / shape))

    def draw(self, rng: Generator, number: int) -> Floats:
        if self.kind == "gamma":
            return rng.gamma(self.shape, self.scale, number)
        return self.scale * rng.weibull(self.shape, number)


def _weibull_shape(cv: float) -> float:
    """By bisection: the CV falls as the shape grows."""
    low, high = 0.05, 200.0
    for _ in range(60):
        middle = math.sqrt(low * high)
        spread = math.exp(math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle)) - 1
        low, high = (middle, high) if spread > cv**2 else (low, middle)
    return low


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt or an answer: lognormal, at least 1."""

    mu: float
    sigma: float

    @classmethod
    def fit(cls, mean: float, p99: float, p50: float | None = None) -> Lengths:
        """Keeps the mean, which makes the load, and comes as near to the percentiles (in logarithms) as it can."""
        sigmas = np.linspace(0, _P99, 1000)
        mus = np.log(mean) - sigmas**2 / 2
        errors = (mus + _P99 * sigmas - np.log(p99)) ** 2
        if p50 is not None:
            errors += (mus - np.log(p50)) ** 2
        best = int(np.argmin(errors))
        return cls(float(mus[best]), float(sigmas[best]))

    def draw(self, rng: Generator, number: int) -> list[int]:
        drawn: list[int] = np.maximum(1, np.rint(rng.lognormal(self.mu, self.sigma, number))).astype(int).tolist()
        return drawn


def requests_at(
    model: str, times: Iterable[Floats], prompts: Lengths, outputs: Lengths, rng: Generator
) -> Iterator[Request]:
    """A request at each of the times, which come in pieces (seconds)."""
    for piece in times:
        drawn = zip(piece.tolist(), prompts.draw(rng, len(piece)), outputs.draw(rng, len(piece)), strict=True)
        for at, prompt_tokens, output_tokens in drawn:
            yield Request(at, model, prompt_tokens, output_tokens)
