"""Validation rules that span several fields or models, or that compare the registry with the disk."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from config.device_memory import bytes_needed, oversize
from config.devices import is_accounted, is_gpu
from config.engines import facts_of
from config.model_files import (
    SMALLEST_VOCABULARY,
    fault_of_config,
    fault_of_folder,
    fault_of_tokenizer,
    fault_of_vocabulary,
    fault_of_weights,
    shape_file,
    weight_bytes,
)
from config.problems import Key, Problems
from config.registry import ModelConfig, Registry
from config.units import format_duration, format_size

MAX_SOCKET_PATH = 96
"""Bytes. The kernel's limit is 107; the workers' sockets lie in the same folder and have longer names."""


def check(registry: Registry, problems: Problems, *, serving: bool) -> None:
    """Record in `problems` every rule that `registry` breaks; rules that depend on an invalid value are skipped."""
    _check_admin_socket(registry, problems)
    _check_devices(registry, problems)
    _check_engine_devices(registry, problems)
    _check_mps(registry, problems)
    _check_reserve(registry, problems)
    _check_silence(registry, problems)
    _check_some_model(registry, problems)
    _check_names(registry, problems)
    _check_pinned(registry, problems)
    for index, model in enumerate(registry.models):
        _check_source(registry, model, ("models", index), problems, serving=serving)
        _check_tensor_parallel(registry, model, ("models", index), problems, serving=serving)
        _check_colon(registry, model, ("models", index), problems)
    _check_bodies(registry, problems)
    _check_host_memory(registry, problems)
    _check_device_memory(registry, problems)


def _check_admin_socket(registry: Registry, problems: Problems) -> None:
    key = ("gateway", "admin_socket")
    nbytes = len(os.fsencode(registry.gateway.admin_socket))
    if nbytes > MAX_SOCKET_PATH and not problems.spoilt(key):
        problems.add(key, f"a path of at most {MAX_SOCKET_PATH} bytes", f"{nbytes}: {registry.gateway.admin_socket}")


def _check_bodies(registry: Registry, problems: Problems) -> None:
    limits, key = registry.gateway.limits, ("gateway", "limits", "unfinished_bodies")
    if problems.spoilt(key, ("gateway", "limits", "max_body")) or limits.unfinished_bodies is None:
        return
    if limits.unfinished_bodies < limits.max_body:
        expected = f"at least gateway.limits.max_body ({format_size(limits.max_body)})"
        problems.add(key, expected, format_size(limits.unfinished_bodies))


def _check_devices(registry: Registry, problems: Problems) -> None:
    devices = registry.pool.devices
    for index, device in enumerate(devices):
        if device in devices[:index]:
            problems.add(("pool", "devices", index), "each device once", f"{device!r} again")


def _check_engine_devices(registry: Registry, problems: Problems) -> None:
    engine = facts_of(registry.pool)
    if not engine.needs_devices or problems.spoilt(("pool", "engine"), ("pool", "devices")):
        return
    only = f"cpu, the only device {registry.pool.engine} runs on"
    expected = "cpu, or a GPU such as cuda:0" if engine.uses_gpus else only
    for index, device in enumerate(registry.pool.devices):
        if device != "cpu" and not (engine.uses_gpus and is_gpu(device)):
            problems.add(("pool", "devices", index), expected, device)


def _check_mps(registry: Registry, problems: Problems) -> None:
    pool, key = registry.pool, ("pool", "mps")
    if pool.mps == "on" and not problems.spoilt(key, ("pool", "devices")) and not all(map(is_gpu, pool.devices)):
        problems.add(key, "auto or off, as not all devices are GPUs", "on")


def _check_reserve(registry: Registry, problems: Problems) -> None:
    pool = registry.pool
    key = ("pool", "blank_reserve")
    reserve = pool.blank_reserve or 0
    if reserve >= pool.workers_per_device and not problems.spoilt(key, ("pool", "workers_per_device")):
        problems.add(key, f"less than workers_per_device ({pool.workers_per_device})", str(reserve))


def _check_device_memory(registry: Registry, problems: Problems) -> None:
    pool = registry.pool
    key = ("pool", "device_memory")
    related = [("pool", name) for name in ("engine", "devices", "device_memory", "kv_minimum", "workspace")]
    if pool.device_memory is None or problems.spoilt(*related):
        return
    if not any(is_accounted(pool, device) for device in pool.devices):
        problems.add(key, f"nothing, as {pool.engine} on a CPU uses no device memory", format_size(pool.device_memory))
        return
    least = pool.kv_minimum + pool.workspace
    if pool.device_memory <= least:
        problems.add(key, f"more than kv_minimum and workspace ({format_size(least)})", format_size(pool.device_memory))
        return
    for index, model in enumerate(registry.models):
        if fault := oversize(registry, model, pool.device_memory):
            field = _source_field(model) if facts_of(pool).needs_weights else "engine_args"
            problems.add(("models", index, field), *fault)
    _check_pinned_memory(registry, problems, pool.device_memory)


def _check_pinned_memory(registry: Registry, problems: Problems, device_memory: int) -> None:
    pool = registry.pool
    pinned = [model for model in registry.models if model.pinned]
    needed = sum(bytes_needed(registry, model) * model.tensor_parallel for model in pinned)
    there = device_memory * len(pool.devices)
    if needed > there and len(pinned) > 1:
        key = ("pool", "device_memory")
        expected = f"at least {format_size(needed)} on all devices for the {len(pinned)} pinned models"
        problems.add(key, expected, format_size(there))


def _check_silence(registry: Registry, problems: Problems) -> None:
    pool = registry.pool
    key = ("pool", "silence")
    if pool.silence <= pool.heartbeat and not problems.spoilt(key, ("pool", "heartbeat")):
        problems.add(key, f"more than heartbeat ({format_duration(pool.heartbeat)})", format_duration(pool.silence))


def _check_some_model(registry: Registry, problems: Problems) -> None:
    if not registry.models and not problems.spoilt(("models",)):
        problems.add(("models",), "at least one model", "none")


def _check_names(registry: Registry, problems: Problems) -> None:
    first: dict[str, int] = {}
    for index, model in enumerate(registry.models):
        key = ("models", index, "name")
        if problems.spoilt(key):
            continue
        if model.name in first:
            problems.add(key, "a name of its own", f"{model.name!r} again (it is models[{first[model.name]}])")
        first.setdefault(model.name, index)


def _check_pinned(registry: Registry, problems: Problems) -> None:
    pool = registry.pool
    workers = len(pool.devices) * pool.workers_per_device
    pinned = [index for index, model in enumerate(registry.models) if model.pinned]
    taken = list(accumulate(registry.models[index].tensor_parallel for index in pinned))
    if not taken or taken[-1] < workers or problems.spoilt(("pool", "devices"), ("pool", "workers_per_device")):
        return
    others = len(registry.models) - len(pinned)
    if taken[-1] > workers:
        key = ("models", pinned[bisect_right(taken, workers)], "pinned")
        problems.add(key, f"pinned models on at most {workers} workers", f"{taken[-1]}")
    elif others:
        key = ("models", pinned[-1], "pinned")
        problems.add(key, f"a worker left for the {others} not pinned", f"pinned models on all {workers} workers")


def _check_host_memory(registry: Registry, problems: Problems) -> None:
    """Sizes come from the weight files, which the scheduler goes by too until a model has been loaded."""
    key = ("weight_store", "host_memory")
    if not facts_of(registry.pool).needs_weights or problems.spoilt(key, ("pool", "engine")):
        return
    budget = registry.weight_store.host_memory
    sizes = [weight_bytes(model) for model in registry.models]
    for index, (model, nbytes) in enumerate(zip(registry.models, sizes, strict=True)):
        if nbytes > budget:
            expected = f"weights of at most weight_store.host_memory ({format_size(budget)})"
            problems.add(("models", index, _source_field(model)), expected, format_size(nbytes))
    kept = [(model, nbytes) for model, nbytes in zip(registry.models, sizes, strict=True) if _is_kept(model)]
    needed = sum(nbytes for _, nbytes in kept)
    if needed > budget and len(kept) > 1:
        parts = ", ".join(f"{model.name} {format_size(nbytes)}" for model, nbytes in kept)
        expected = f"at least {format_size(needed)} for what is pinned or preloaded ({parts})"
        problems.add(key, expected, format_size(budget))


def _source_field(model: ModelConfig) -> str:
    return "shape" if model.path is None else "path"


def _is_kept(model: ModelConfig) -> bool:
    return model.pinned or model.preload


def _check_source(registry: Registry, model: ModelConfig, key: Key, problems: Problems, *, serving: bool) -> None:
    if not problems.spoilt((*key, "path"), (*key, "shape"), (*key, "weights"), ("pool", "engine")):
        needed = facts_of(registry.pool).needs_weights
        for field, expected, got in _source_faults(model, needs_source=needed, needs_weights=serving and needed):
            problems.add((*key, field), expected, got)


def _source_faults(model: ModelConfig, *, needs_source: bool, needs_weights: bool) -> Iterator[tuple[str, str, str]]:
    """Yields field, what was expected, and what was found."""
    dummy = model.weights == "dummy"
    if model.path and model.shape:
        yield "shape", "a path or a shape", "both"
    elif dummy and not model.path and not model.shape:
        yield "weights", "a path or a shape to make dummy weights for", "neither"
    elif not model.path and not model.shape and needs_source:
        yield "path", "a folder with config.json, tokenizer and safetensors", "nothing"
    if model.path:
        yield from _path_faults(model.path, needs_weights and not dummy)
    if model.shape:
        if fault := fault_of_config(shape_file(model.shape)):
            yield "shape", "a model's config.json", fault
        if needs_weights and not dummy and not model.path:
            expected = "a path, or weights: dummy, since a shape alone can be simulated but not served"
            yield "shape", expected, "a shape alone"
    if dummy and needs_weights and (fault := fault_of_vocabulary(model)):
        yield _source_field(model), f"a tokenizer, or a vocab_size of at least {SMALLEST_VOCABULARY}", fault


def _path_faults(path: Path, needs_weights: bool) -> Iterator[tuple[str, str, str]]:
    if fault := fault_of_folder(path):
        yield "path", "a folder", fault
    elif fault := fault_of_config(path / "config.json"):
        yield "path", "a folder with a model's config.json", fault
    elif needs_weights:
        if fault := fault_of_weights(path):
            yield "path", "a folder with a model's weights", fault
        if fault := fault_of_tokenizer(path):
            yield "path", "a folder with a model's tokenizer", fault


def _check_tensor_parallel(
    registry: Registry, model: ModelConfig, key: Key, problems: Problems, *, serving: bool
) -> None:
    pool = registry.pool
    key = (*key, "tensor_parallel")
    if not serving or problems.spoilt(key, ("pool", "engine"), ("pool", "devices")):
        return
    if not facts_of(pool).serves_groups and model.tensor_parallel > 1:
        problems.add(key, f"1 with the engine {pool.engine}", str(model.tensor_parallel))
    elif model.tensor_parallel > len(pool.devices):
        problems.add(key, f"at most the number of devices ({len(pool.devices)})", str(model.tensor_parallel))


def _check_colon(registry: Registry, model: ModelConfig, key: Key, problems: Problems) -> None:
    key = (*key, "name")
    if facts_of(registry.pool).takes_colons or problems.spoilt(key, ("pool", "engine")):
        return
    if ":" in model.name:
        problems.add(key, "a name without a colon, after which SGLang expects an adapter", model.name)
