"""`prism simulate`: from its command line to its table."""

from __future__ import annotations

import argparse
import time
from itertools import product

from msgspec.structs import replace

from bench.errors import UsageError
from bench.progress import say, say_again
from bench.simulator.calibration import Calibration, read_calibration
from bench.simulator.costs import Costs
from bench.simulator.models import costs_of, on_gpus, with_objectives
from bench.simulator.report import Row, Setting, describe, row, table, write_json
from bench.simulator.simulation import Simulation
from bench.traces.readers import read_trace
from bench.traces.synthetic_text import parse_synthetic, written
from bench.traces.trace import Trace, map_models
from config.reader import read_registry
from config.registry import Registry
from config.units import format_size
from gateway.device_memory import SHARE


def run(options: argparse.Namespace) -> int:
    """Simulate every combination of what was asked for; returns the exit status.

    Raises:
        ConfigError: the registry is wrong.
        UsageError: the command line is.
        BenchError: a shape, a trace or the calibration is.
    """
    calibration = read_calibration(options.calibration) if options.calibration else read_calibration()
    registry = on_gpus(read_registry(options.registry, serving=False), options.gpus, options.workers)
    costs = costs_of(registry.models, calibration)
    trace = _mapped(open_trace(options), registry)
    capacity = int(SHARE * (options.gpu_memory or calibration.memory_bytes))
    _say_machine(calibration, registry, capacity)
    rows: list[Row] = []
    for policy, rate, slo in product(options.policy, options.rate_scale, options.slo_scale):
        setting = Setting(policy, len(registry.pool.devices), rate, slo, options.seed or 0)
        rows.append(_simulate(setting, registry, trace, costs, calibration, capacity, validate=options.validate))
    print(table(rows))
    if options.json is not None:
        write_json(rows, options.json)
    return 0


def open_trace(options: argparse.Namespace) -> Trace:
    """The trace that the command line names. Raises: BenchError."""
    if options.synthetic is None:
        return read_trace(options.trace, duration=options.duration, seed=options.seed or 0)
    synthetic = parse_synthetic(options.synthetic)
    if options.seed is not None:
        synthetic = replace(synthetic, seed=options.seed)
    say(f"trace: {written(synthetic)}")
    trace = synthetic.trace()
    return trace if options.duration is None else trace.window(0.0, options.duration)


def _mapped(trace: Trace, registry: Registry) -> Trace:
    """The trace in memory, with the registry's models for its own."""
    trace = trace.stored()
    if not trace.duration:
        raise UsageError("the trace holds no requests")
    mapping = map_models(trace, [model.name for model in registry.models])
    for name, stand_in in mapping.items():
        say(f"trace: {name} is {stand_in}")
    return trace.renamed(mapping)


def _say_machine(calibration: Calibration, registry: Registry, capacity: int) -> None:
    pool = registry.pool
    say(f"{len(pool.devices)} GPUs with {format_size(capacity)} for Prism, {pool.workers_per_device} workers on each")
    say(f"calibration: {calibration.machine}; assumed, not measured: {', '.join(calibration.assumptions) or 'nothing'}")


def _simulate(
    setting: Setting,
    registry: Registry,
    trace: Trace,
    costs: dict[str, Costs],
    calibration: Calibration,
    capacity: int,
    *,
    validate: bool,
) -> Row:
    scheduler = replace(registry.scheduler, policy=setting.policy)
    registry = with_objectives(replace(registry, scheduler=scheduler), setting.slo_scale)
    name = f"{setting.policy}, rate x{setting.rate_scale:g}, SLO x{setting.slo_scale:g}"

    def progress(seconds: float) -> None:
        say_again(f"{name}: {seconds:.0f} of {trace.duration:.0f} s")

    began = time.perf_counter()
    simulation = Simulation(registry, costs, calibration, capacity=capacity, validate=validate, progress=progress)
    result = simulation.run(trace.scaled(setting.rate_scale, setting.seed))
    say(f"{name}: {describe(result)} (simulated in {time.perf_counter() - began:.1f} s)")
    return row(setting, result, {model.name: model.slo for model in registry.models})
