"""What one more request on a worker does to the TPOT of those that run on its device, and they to its own."""

from __future__ import annotations

from scheduler.forecast.kv_pressure import share_missed
from scheduler.state.entities import Model, Request, Worker
from scheduler.state.state import State

MIX = 0.5
"""What running now counts of a worker's activity; the rest is how busy it was lately."""
NEGLIGIBLE = 0.01
"""Below it a neighbour's activity is not looked at."""


def harm_of(state: State, worker: Worker, request: Request, now: float) -> float:
    """Requests that are expected to miss their TPOT objective if `request` goes to `worker`, itself among them.

    Decode: a busy neighbour takes a share of every step; one that was busy lately counts as what it was in the mean.
    Prefill: the prompt stalls those that decode on the same worker, and for its part the neighbours.
    """
    model = state.models[request.model]
    prefill = model.demand.prefill.at(request.prompt_tokens)
    others = [(other, _activity(other, now)) for other in state.on(state.device_of(worker)) if other is not worker]
    together = sum(activity for _, activity in others)
    before = _activity(worker, now)
    harm = share_missed(state, model, together) + len(worker.running) * _stalled(model, prefill)
    for other, activity in others:
        if activity < NEGLIGIBLE or other.model is None:
            continue
        beside = state.models[other.model]
        rest = together - activity
        more = (1.0 - before) * _share_beside(model, beside)
        missing = share_missed(state, beside, rest + before + more) - share_missed(state, beside, rest + before)
        stalled = _stalled(beside, prefill * state.estimates.slowdown)
        harm += max(activity, len(other.running)) * (missing + stalled)
    return harm


def _share_beside(model: Model, other: Model) -> float:
    """For which share of the other's answers one of the model counts: the shorter it is, the less.

    By the root of what it lasts, since others like it follow.
    """
    own, others = (it.demand.output_tokens * it.demand.tpot for it in (model, other))
    return min(1.0, (own / others) ** 0.5) if own > 0.0 and others > 0.0 else 1.0


def _activity(worker: Worker, now: float) -> float:
    """How busy a worker is taken to be, from 0 to 1."""
    return MIX * bool(worker.running) + (1 - MIX) * worker.busy.at(now)


def _stalled(model: Model, seconds: float) -> float:
    """The share of its requests that a stall of so many seconds makes miss: what it takes of an answer's slack."""
    slack = (model.slo_tpot - model.demand.tpot) * model.demand.output_tokens
    return min(1.0, seconds / slack) if slack > 0 else 0.0
