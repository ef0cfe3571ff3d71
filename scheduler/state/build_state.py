"""The state at the start: what the registry says, and all workers starting."""

from __future__ import annotations

from collections.abc import Mapping

from config.devices import copies_at_a_time
from config.registry import PoolConfig, Registry
from scheduler.learned.estimates import demand_of, estimates_of
from scheduler.learned.profile import Profile
from scheduler.state.entities import Device, HostMemory, Model, Worker
from scheduler.state.ledger import Ledger
from scheduler.state.state import State


def build_state(
    registry: Registry,
    weight_bytes: Mapping[str, int],
    kv_bytes: Mapping[str, int],
    capacities: Mapping[str, int],
    profile: Profile,
    *,
    staging: bool,
) -> State:
    """What a scheduler knows before its first event; the arguments are those of `Scheduler`."""
    models = {
        spec.name: Model(
            name=spec.name,
            index=index,
            priority=spec.priority,
            pinned=spec.pinned,
            preload=spec.preload,
            weight_bytes=weight_bytes.get(spec.name, 0),
            kv_bytes=-(-kv_bytes.get(spec.name, 0) // spec.tensor_parallel),
            slo_tpot=spec.slo.tpot,
            tensor_parallel=spec.tensor_parallel,
            demand=demand_of(profile.models.get(spec.name), registry.scheduler.window),
        )
        for index, spec in enumerate(registry.models)
    }
    pool = registry.pool
    places = [device for device in pool.devices for _ in range(pool.workers_per_device)]
    workers = [Worker(number, device) for number, device in enumerate(places)]
    state = State(
        models=models,
        workers=workers,
        host=HostMemory(required=staging and bool(weight_bytes), capacity=registry.weight_store.host_memory),
        devices={name: _device(pool, name, workers, capacities.get(name)) for name in pool.devices},
        estimates=estimates_of(profile),
    )
    if state.host.required:
        state.to_preload = {m.name: None for m in models.values() if m.pinned or m.preload}
    return state


def _device(pool: PoolConfig, name: str, workers: list[Worker], capacity: int | None) -> Device:
    numbers = (worker.number for worker in workers if worker.device == name)
    return Device(name, Ledger(capacity, numbers), pool.kv_minimum, pool.workspace, copies_at_a_time(pool, name))
