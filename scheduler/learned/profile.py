"""What is known of speeds before anything was seen: measured on another day, or worked out from a model's shape.

A profile is data: whoever builds a scheduler reads it from its file. What is missing is learned.
"""

from __future__ import annotations

from msgspec import Struct


class Fit(Struct, frozen=True):
    """Seconds as a line: `seconds`, and `per_unit` for each byte or token."""

    seconds: float = 0.0
    per_unit: float = 0.0

    def at(self, units: float) -> float:
        """Seconds."""
        return self.seconds + self.per_unit * units


class ModelProfile(Struct, frozen=True, kw_only=True):
    prefill: Fit | None = None
    """By tokens of the prompt, alone on its device."""
    tpot: float = 0.0
    """Seconds per output token, alone on its device; 0 is not known."""
    output_tokens: float = 0.0
    """Of an answer, in the mean; 0 is not known."""


class Profile(Struct, frozen=True, kw_only=True):
    parked: Fit | None = None
    """Activations by bytes of weights; from a parked worker, from a blank one, and loads from disk."""
    blank: Fit | None = None
    disk: Fit | None = None
    slowdown: float = 1.0
    """By which a busy neighbour prolongs a step, as a share of the step alone. 1: they take turns."""
    models: dict[str, ModelProfile] = {}
