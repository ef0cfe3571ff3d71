"""What a scheduler is told of speeds before the first request: what the calibration says."""

from __future__ import annotations

from collections.abc import Mapping

from bench.simulator.calibration import Calibration, Transfer
from bench.simulator.costs import Costs
from scheduler.profile import Fit, ModelProfile, Profile

SHORT, LONG = 256, 4096
"""Tokens of two prompts: a prefill's seconds are stated as a line through both, though they are none."""
CONTEXT, BATCH = 1024, 4
"""Tokens and requests for which seconds per output token are stated. What differs is learned."""


def profile_of(costs: Mapping[str, Costs], calibration: Calibration) -> Profile:
    return Profile(
        parked=_fit(calibration.parked),
        blank=_fit(calibration.blank),
        disk=_fit(calibration.disk),
        slowdown=calibration.colocation.per_neighbour,
        models={name: _model(cost) for name, cost in costs.items()},
    )


def _fit(transfer: Transfer) -> Fit:
    return Fit(transfer.seconds, 1 / transfer.bytes_per_s)


def _model(costs: Costs) -> ModelProfile:
    short, long = (costs.prefill(costs.prefill_work(tokens, 0)) for tokens in (SHORT, LONG))
    per_token = (long - short) / (LONG - SHORT)
    prefill = Fit(max(0.0, short - SHORT * per_token), per_token)
    return ModelProfile(prefill=prefill, tpot=costs.decode(BATCH, BATCH * CONTEXT))
