"""The state as plain JSON, for `prism status`, `models` and `workers`. Times in seconds, sizes in bytes."""

from __future__ import annotations

import time
from typing import Any

from gateway.context import Context
from scheduler.state.entities import Model, Worker
from scheduler.state.phases import Phase


def models(context: Context) -> list[dict[str, Any]]:
    return [_model(context, model) for model in context.scheduler.state.models.values()]


def workers(context: Context) -> list[dict[str, Any]]:
    return [_worker(context, worker) for worker in context.scheduler.state.workers]


def devices(context: Context) -> list[dict[str, Any]]:
    """Those whose memory is accounted."""
    accounted = (device for device in context.scheduler.state.devices.values() if device.accounted)
    return [{"device": device.name, **device.ledger.by_kind()} for device in accounted]


def whole(context: Context) -> dict[str, Any]:
    state = context.scheduler.state
    return {
        "engine": context.registry.pool.engine,
        "policy": context.registry.scheduler.policy,
        "ready": not unready(context),
        "unready": unready(context),
        "draining": context.draining,
        "in_flight": len(context.live),
        "waiting": sum(len(model.queue) for model in state.models.values()),
        "host_memory": {"used": state.staged_bytes(), "capacity": state.host.capacity},
        "devices": devices(context),
        "loading": {name: {"done": done, "total": total} for name, (done, total) in context.loading.items()},
        "models": models(context),
        "workers": workers(context),
        "decisions": list(context.journal.entries),
    }


def unready(context: Context) -> list[str]:
    """What keeps the gateway from being ready; empty when it is."""
    state = context.scheduler.state
    reasons = [f"draining: {context.draining}"] if context.draining else []
    if context.changing:
        reasons.append("the policy is being changed")
    if all(worker.phase is Phase.STARTING for worker in state.workers):
        reasons.append("no worker is up yet")
    for model in state.models.values():
        if model.pinned and not any(state.workers[n].phase is Phase.ACTIVE for n in model.workers):
            reasons.append(f"the pinned model {model.name} is not active yet")
    return reasons


def _model(context: Context, model: Model) -> dict[str, Any]:
    state = context.scheduler.state
    here = [worker for worker in state.workers if worker.model == model.name]
    return {
        "name": model.name,
        "state": _model_state(context, model, here),
        "workers": [worker.number for worker in here],
        "running": sum(len(worker.running) for worker in here if worker.leads),
        "waiting": len(model.queue),
        "host_bytes": model.weight_bytes if model.staged else 0,
        "weight_bytes": model.weight_bytes,
        "pinned": model.pinned,
        "activation_s": model.activation_seconds or None,
        "idle_s": time.monotonic() - model.last_used if model.last_used else None,
        "failure": model.failure,
    }


def _model_state(context: Context, model: Model, here: list[Worker]) -> str:
    for phase in (Phase.ACTIVE, Phase.ACTIVATING, Phase.PREPARING, Phase.DRAINING, Phase.PARKING, Phase.PARKED):
        if any(worker.phase is phase for worker in here):
            return phase.value
    if model.name in context.loading:
        return "loading"
    return "in host memory" if model.staged else "on disk"


def _worker(context: Context, worker: Worker) -> dict[str, Any]:
    place = context.pool.workers[worker.number]
    account = context.scheduler.state.account(worker)
    stats = context.journal.stats.get(worker.number)
    apart = context.scheduler.state.isolations[worker.number] if worker.phase is Phase.ISOLATED else None
    return {
        "worker": worker.number,
        "device": worker.device,
        "pid": place.pid,
        "mps": place.mps is not None,
        "state": worker.phase.value,
        "model": apart.model if apart else worker.model,
        "running": len(apart.running if apart else worker.running),
        "rehearsing": worker.replica.rehearsing,
        "in_state_s": time.monotonic() - worker.since if worker.since else None,
        "restarts": place.restarts,
        "held_bytes": account.held,
        "kv_bytes": worker.kv_mapped,
        "kv_limit": account.limit,
        "rss_bytes": stats.rss if stats else None,
        "prompt_tokens": stats.prompt_tokens if stats else 0,
        "output_tokens": stats.output_tokens if stats else 0,
        "prefill_tokens_per_s": stats.prefill_rate if stats else 0.0,
        "decode_tokens_per_s": stats.decode_rate if stats else 0.0,
        "decode_batch": stats.batch if stats else 0.0,
        "gpu_bytes": stats.process_used if stats else None,
        "device_used_bytes": stats.device_used if stats else 0,
        "activation_phases_s": context.journal.activations.get(worker.number),
        "activation_copy_s": context.journal.copies.get(worker.number),
        "teardown_phases_s": context.journal.teardowns.get(worker.number),
    }
