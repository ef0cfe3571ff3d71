"""Draws the requests of a load test: times (seconds from the run's start), models and lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths in tokens, and its text form."""

    text: str
    draw: Callable[[np.random.Generator], int]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Arrival:
    """A planned request. `model` is empty until it is drawn."""

    at: float
    model: str
    prompt_tokens: int
    output_tokens: int


def parse_lengths(text: str) -> Lengths:
    """Parse token lengths such as `128`, `uniform:16-256` or `lognormal:MEDIAN,P99`. Raises: ValueError."""
    kind, _, rest = text.partition(":")
    if not rest:
        fixed = _at_least_one(text)
        return Lengths(text, lambda rng: fixed)
    if kind == "uniform":
        low, high = map(_at_least_one, rest.split("-"))
        if low > high:
            raise ValueError(f"{text!r}: {low} is above {high}")
        return Lengths(text, lambda rng: int(rng.integers(low, high, endpoint=True)))
    if kind == "lognormal":
        median, p99 = map(_at_least_one, rest.split(","))
        sigma = np.log(max(p99 / median, 1.0)) / 2.326  # the normal distribution's 99th percentile
        return Lengths(text, lambda rng: max(1, round(rng.lognormal(np.log(median), sigma))))
    raise ValueError(f"{text!r}: expected N, uniform:LOW-HIGH or lognormal:MEDIAN,P99")


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"{text!r}: expected a length of at least 1 token")
    return value


def parse_popularity(text: str) -> float:
    """Parse `uniform` (0) or `zipf:S` into the exponent of Zipf's law. Raises: ValueError."""
    if text == "uniform":
        return 0.0
    kind, _, exponent = text.partition(":")
    if kind != "zipf" or float(exponent) < 0:
        raise ValueError(f"{text!r}: expected uniform or zipf:EXPONENT")
    return float(exponent)


def arrival_times(rate: float, duration: float, burstiness: float, rng: np.random.Generator) -> Iterator[float]:
    """Yields arrival times at `rate` per second, with Gamma-distributed gaps of coefficient of variation `burstiness`
    (1: Poisson, 0: regular)."""
    at = 0.0
    while True:
        at += rng.gamma(burstiness**-2, burstiness**2 / rate) if burstiness else 1 / rate
        if at >= duration:
            return
        yield at


def draw_models(models: Sequence[str], exponent: float, number: int, rng: np.random.Generator) -> list[str]:
    """Draw `number` models by Zipf's law; the first of `models` is the most popular."""
    weights = np.arange(1, len(models) + 1, dtype=float) ** -exponent
    picked = rng.choice(len(models), size=number, p=weights / weights.sum())
    return [models[index] for index in picked]
