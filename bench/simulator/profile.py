"""What a scheduler is told of speeds before the first request: what the calibration says."""

from __future__ import annotations

from collections.abc import Mapping

from bench.simulator.calibration import Calibration, Transfer
from bench.simulator.costs import Costs
from scheduler.profile import Fit, ModelProfile, Profile

PROMPT, CONTEXT, BATCH = 1024, 1024, 4
"""Tokens and requests for which a model's speeds are stated; what differs is learned."""


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
    per_token = costs.prefill(PROMPT, 0) / PROMPT
    return ModelProfile(prefill=Fit(costs.prefill_step, per_token), tpot=costs.decode(BATCH, BATCH * CONTEXT))
