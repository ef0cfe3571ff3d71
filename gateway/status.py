"""Fills in the structs of `gateway.report` from the state of the gateway and of its scheduler."""

from __future__ import annotations

import time

from gateway.core import Gateway
from gateway.report import (
    DeviceStatus,
    HostMemoryStatus,
    LoadStatus,
    ModelState,
    ModelStatus,
    Readiness,
    Status,
    WorkerStatus,
)
from scheduler.state.entities import Model, Worker
from scheduler.state.phases import Phase


def snapshot(gateway: Gateway) -> Status:
    """Everything at this moment."""
    state = gateway.scheduler.state
    reasons = unready(gateway)
    return Status(
        engine=gateway.registry.pool.engine,
        policy=gateway.registry.scheduler.policy,
        ready=not reasons,
        unready=reasons,
        draining=gateway.draining,
        in_flight=len(gateway.live),
        waiting=sum(len(model.queue) for model in state.models.values()),
        host_memory=HostMemoryStatus(state.staged_bytes(), state.host.capacity),
        devices=devices(gateway),
        loading={name: LoadStatus(done, total) for name, (done, total) in gateway.loading.items()},
        models=models(gateway),
        workers=workers(gateway),
        decisions=list(gateway.journal.entries),
    )


def models(gateway: Gateway) -> list[ModelStatus]:
    return [_model(gateway, model) for model in gateway.scheduler.state.models.values()]


def workers(gateway: Gateway) -> list[WorkerStatus]:
    return [_worker(gateway, worker) for worker in gateway.scheduler.state.workers]


def devices(gateway: Gateway) -> list[DeviceStatus]:
    """The devices whose memory is accounted for."""
    accounted = (device for device in gateway.scheduler.state.devices.values() if device.accounted)
    return [DeviceStatus(device.name, **device.ledger.by_kind()) for device in accounted]


def readiness(gateway: Gateway) -> Readiness:
    reasons = unready(gateway)
    return Readiness(not reasons, reasons)


def unready(gateway: Gateway) -> list[str]:
    """Why the gateway is not ready; empty if it is."""
    state = gateway.scheduler.state
    reasons = [f"draining: {gateway.draining}"] if gateway.draining else []
    if gateway.changing:
        reasons.append("the policy is being changed")
    if all(worker.phase is Phase.STARTING for worker in state.workers):
        reasons.append("no worker is up yet")
    for model in state.models.values():
        if model.pinned and not any(state.workers[n].phase is Phase.ACTIVE for n in model.workers):
            reasons.append(f"the pinned model {model.name} is not active yet")
    return reasons


def _model(gateway: Gateway, model: Model) -> ModelStatus:
    state = gateway.scheduler.state
    here = [worker for worker in state.workers if worker.model == model.name]
    return ModelStatus(
        name=model.name,
        state=_model_state(gateway, model, here),
        workers=[worker.number for worker in here],
        running=sum(len(worker.running) for worker in here if worker.leads),
        waiting=len(model.queue),
        host_bytes=model.weight_bytes if model.staged else 0,
        weight_bytes=model.weight_bytes,
        pinned=model.pinned,
        activation_s=model.activation_seconds or None,
        idle_s=time.monotonic() - model.last_used if model.last_used else None,
        failure=model.failure,
    )


def _model_state(gateway: Gateway, model: Model, here: list[Worker]) -> ModelState:
    for phase in (Phase.ACTIVE, Phase.ACTIVATING, Phase.PREPARING, Phase.DRAINING, Phase.PARKING, Phase.PARKED):
        if any(worker.phase is phase for worker in here):
            return ModelState(phase)
    if model.name in gateway.loading:
        return ModelState.LOADING
    return ModelState.IN_HOST_MEMORY if model.staged else ModelState.ON_DISK


def _worker(gateway: Gateway, worker: Worker) -> WorkerStatus:
    place = gateway.pool.workers[worker.number]
    account = gateway.scheduler.state.account(worker)
    stats = gateway.journal.stats.get(worker.number)
    apart = gateway.scheduler.state.isolations[worker.number] if worker.phase is Phase.ISOLATED else None
    return WorkerStatus(
        worker=worker.number,
        device=worker.device,
        pid=place.pid,
        mps=place.mps is not None,
        state=worker.phase,
        model=apart.model if apart else worker.model,
        running=len(apart.running if apart else worker.running),
        rehearsing=worker.replica.rehearsing,
        in_state_s=time.monotonic() - worker.since if worker.since else None,
        restarts=place.restarts,
        held_bytes=account.held,
        kv_bytes=worker.kv_mapped,
        kv_limit=account.limit,
        rss_bytes=stats.rss if stats else None,
        prompt_tokens=stats.prompt_tokens if stats else 0,
        output_tokens=stats.output_tokens if stats else 0,
        prefill_tokens_per_s=stats.prefill_rate if stats else 0.0,
        decode_tokens_per_s=stats.decode_rate if stats else 0.0,
        decode_batch=stats.batch if stats else 0.0,
        gpu_bytes=stats.process_used if stats else None,
        device_used_bytes=stats.device_used if stats else 0,
        activation_phases_s=gateway.journal.activations.get(worker.number),
        activation_copy_s=gateway.journal.copies.get(worker.number),
        teardown_phases_s=gateway.journal.teardowns.get(worker.number),
    )
