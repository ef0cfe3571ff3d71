"""What a scheduler is told of speeds before the first request: what the calibration says."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from scheduler.learned.profile import Fit, ModelProfile, Profile
from simulator.calibration import Calibration, Transfer
from simulator.costs import Costs
from simulator.sharing import ALONE, Beside, Load, Sharing, sharing_of

SHORT, LONG = 256, 4096
"""Tokens of two prompts: a prefill's seconds are stated as a line through both, though they are none."""
CONTEXT, BATCH = 1024, 4
"""Tokens and requests for which seconds per output token are stated. What differs is learned."""


def profile_of(costs: Mapping[str, Costs], calibration: Calibration, *, mps: bool = False) -> Profile:
    return Profile(
        parked=_fit(calibration.parked),
        blank=_fit(calibration.blank),
        disk=_fit(calibration.disk),
        slowdown=_slowdown(costs, sharing_of(calibration, mps=mps)),
        models={name: _model(cost) for name, cost in costs.items()},
    )


def _fit(transfer: Transfer) -> Fit:
    return Fit(transfer.seconds, 1 / transfer.bytes_per_s)


def _slowdown(models: Mapping[str, Costs], sharing: Sharing) -> float:
    """By which share a decode step is longer beside another's than alone: the mean over all pairs of sizes."""
    sizes = list({costs.shard_bytes: costs for costs in models.values()}.values())
    pairs = [(one, Beside(sharing, [[_load(other)]], resident=True)) for one in sizes for other in sizes]
    return fmean(_decode(one, beside) / _decode(one, ALONE) - 1 for one, beside in pairs) if pairs else 0.0


def _load(costs: Costs) -> Load:
    return costs.decode_load(costs.decode(BATCH, BATCH * CONTEXT), BATCH, BATCH * CONTEXT, resident=True)


def _decode(costs: Costs, beside: Beside) -> float:
    """Seconds per output token."""
    step, _ = costs.decode_beside(BATCH, BATCH * CONTEXT, CONTEXT, beside)
    return step.first


def _model(costs: Costs) -> ModelProfile:
    short, long = (_first_token(costs, tokens) for tokens in (SHORT, LONG))
    per_token = (long - short) / (LONG - SHORT)
    prefill = Fit(max(0.0, short - SHORT * per_token), per_token)
    return ModelProfile(prefill=prefill, tpot=_decode(costs, ALONE))


def _first_token(costs: Costs, tokens: int) -> float:
    """Seconds from a request's dispatch, alone on its device."""
    step = costs.prefill(costs.prefill_work(tokens, 0)) + costs.prefill_host
    return costs.front(tokens) + step
