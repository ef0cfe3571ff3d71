"""Whether this machine has what a registry asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from config.devices import gpu_index, is_used_gpu
from config.errors import ConfigError, PoolError
from config.reader import read_registry
from config.registry import Registry
from config.units import format_size
from enginepool.host.host_memory import available, total
from gateway.device_memory import capacities, never_fitting
from gateway.doctor.finding import Finding, failed, ok, warning

_FILES = 256
"""Open files beside clients': workers, models in host memory, sockets."""


def read(path: Path) -> tuple[Registry | None, list[Finding]]:
    """The registry, and what `prism check` says of it."""
    try:
        registry = read_registry(path)
    except ConfigError as error:
        fix = "see config/registry.py for what each key means"
        return None, [failed("registry", problem, fix) for problem in error.problems]
    return registry, [ok("registry", f"{path}: {len(registry.models)} models, engine {registry.pool.engine}")]


def wants_gpus(registry: Registry) -> bool:
    """Whether it names any for an engine that uses them."""
    return any(is_used_gpu(registry.pool, device) for device in registry.pool.devices)


def open_files(registry: Registry) -> int:
    """How many the gateway may need at a time: every queue full, and the requests that run."""
    pool, waiting = registry.pool, registry.gateway.limits.queue_per_model * len(registry.models)
    return waiting + len(pool.devices) * pool.workers_per_device * pool.max_running + _FILES


def check_registry(registry: Registry, gpus: int | None) -> Iterator[Finding]:
    """Against host memory and, where their number is known, GPUs."""
    yield _host_memory(registry)
    if wants_gpus(registry) and gpus:
        yield from _devices(registry, gpus)


def _host_memory(registry: Registry) -> Finding:
    check, budget = "host_memory", registry.weight_store.host_memory
    text = f"{format_size(budget)} for weights"
    if budget > total():
        fix = "lower weight_store.host_memory; models that have no room there are read from disk at each activation"
        return failed(check, f"{text}; there are {format_size(total())}", fix)
    if budget > available():
        fix = "end what uses the rest, or lower weight_store.host_memory"
        return warning(check, f"{text}; {format_size(available())} are available now", fix)
    return ok(check, text)


def _devices(registry: Registry, gpus: int) -> Iterator[Finding]:
    missing = [device for device in registry.pool.devices if (gpu_index(device) or 0) >= gpus]
    if missing:
        yield failed("devices", f"there is no {', '.join(missing)}", f"pool.devices may name cuda:0 to cuda:{gpus - 1}")
        return
    try:
        faults = never_fitting(registry, capacities(registry.pool))
    except PoolError as error:
        yield failed("devices", str(error), "see the rows about GPUs")
        return
    yield from (failed("devices", fault, "take the model out, or give it a larger GPU") for fault in faults)
    if not faults:
        yield ok("devices", f"{', '.join(registry.pool.devices)}; each model fits")
