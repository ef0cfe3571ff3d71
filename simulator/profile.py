"""Derives the speeds that the scheduler starts with from a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from scheduler.learned.profile import Fit, ModelProfile, Profile
from simulator.calibration import Calibration, Transfer
from simulator.costs import Costs
from simulator.sharing import ALONE, Contention, Sharing, StepLoad, sharing_of

SHORT, LONG = 256, 4096
"""Prompt lengths (tokens) through which the linear model of prefill times is drawn; the real times are not linear."""
CONTEXT, BATCH = 1024, 4
"""Context tokens and batch size for which seconds per output token are stated; the scheduler learns deviations."""


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
    """Relative slowdown of a decode step next to one other decoding engine, averaged over all pairs of model sizes."""
    sizes = list({costs.shard_bytes: costs for costs in models.values()}.values())
    pairs = [(one, Contention(sharing, [[_load(other)]], resident=True)) for one in sizes for other in sizes]
    return fmean(_decode(one, contention) / _decode(one, ALONE) - 1 for one, contention in pairs) if pairs else 0.0


def _load(costs: Costs) -> StepLoad:
    return costs.decode_load(costs.decode(BATCH, BATCH * CONTEXT), BATCH, BATCH * CONTEXT, resident=True)


def _decode(costs: Costs, contention: Contention) -> float:
    """Seconds per output token."""
    step, _ = costs.contended_decode(BATCH, BATCH * CONTEXT, CONTEXT, contention)
    return step.first


def _model(costs: Costs) -> ModelProfile:
    short, long = (_first_token(costs, tokens) for tokens in (SHORT, LONG))
    per_token = (long - short) / (LONG - SHORT)
    prefill = Fit(max(0.0, short - SHORT * per_token), per_token)
    return ModelProfile(prefill=prefill, tpot=_decode(costs, ALONE))


def _first_token(costs: Costs, tokens: int) -> float:
    """Seconds from dispatch to first token of a request alone on its device."""
    step = costs.prefill(costs.prefill_work(tokens, 0)) + costs.prefill_host
    return costs.front(tokens) + step
