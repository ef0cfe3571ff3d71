"""What the scheduler expects of models and devices: learned from events, seeded by a profile. No speed is built in."""

from __future__ import annotations

from dataclasses import dataclass, field

from scheduler.learned.averages import Line, Rate
from scheduler.learned.profile import Fit, ModelProfile, Profile
from scheduler.learned.recurrence import Recurrence

RECENT = 5.0
"""Seconds of half-life of how busy a worker is."""
SMOOTHING = 0.1
"""Weight of the newest value in a moving average of single requests."""
_SEEDS = (1e8, 1e11)
"""Bytes, and:"""
_SEED_TOKENS = (16, 4096)
"""Two points make the line of a profile; what is seen later outweighs them."""


@dataclass(slots=True)
class Demand:
    """What clients want of one model, and what that costs alone on a device."""

    arrivals: Rate
    """Requests."""
    tokens: Rate
    """Admitted prompt tokens and decoded tokens."""
    prefill: Line = field(default_factory=Line)
    """Seconds to the first token by prompt tokens, of requests that found an idle worker."""
    tpot: float = 0.0
    """Seconds per output token without busy neighbours; 0 is not known."""
    prompt_tokens: float = 0.0
    """Of a request, in the mean; 0 is not known."""
    output_tokens: float = 0.0
    """Of an answer, in the mean; 0 is not known."""
    recurrence: Recurrence = field(default_factory=Recurrence)


@dataclass(slots=True)
class Estimates:
    """What holds for all models: seconds by bytes of weights, and how neighbours slow each other down."""

    parked: Line
    blank: Line
    disk: Line
    slowdown: float
    """By which a busy neighbour prolongs a step, as a share of the step alone."""

    def activation(self, weight_bytes: int, *, parked: bool) -> float:
        """Seconds; 0 while nothing is known. A start that was never seen is taken to be like the other."""
        line, other = (self.parked, self.blank) if parked else (self.blank, self.parked)
        return (line if line.known else other).at(weight_bytes)

    def saw_neighbours(self, alone: float, tpot: float, neighbours: float) -> None:
        """An answer came at `tpot` seconds per token, where it is `alone` without busy `neighbours`."""
        if alone > 0.0 and neighbours > 0.0:
            seen = max(0.0, tpot / alone - 1.0) / neighbours
            self.slowdown += SMOOTHING * (min(seen, 4.0) - self.slowdown)


def estimates_of(profile: Profile) -> Estimates:
    return Estimates(
        parked=_line(profile.parked, _SEEDS),
        blank=_line(profile.blank, _SEEDS),
        disk=_line(profile.disk, _SEEDS),
        slowdown=profile.slowdown,
    )


def demand_of(profile: ModelProfile | None, window: float) -> Demand:
    """A model of which nothing was seen yet; `window` seconds is how far back rates look."""
    demand = Demand(Rate(window), Rate(window))
    if profile is not None:
        demand.prefill = _line(profile.prefill, _SEED_TOKENS)
        demand.tpot = profile.tpot
        demand.output_tokens = profile.output_tokens
    return demand


def _line(fit: Fit | None, at: tuple[float, float]) -> Line:
    line = Line()
    if fit is not None:
        for x in at:
            line.see(x, fit.at(x))
    return line
