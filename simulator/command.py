"""The `prism simulate` command."""

from __future__ import annotations

import argparse
import dataclasses
from itertools import product

from msgspec.structs import replace

from config.device_memory import SHARE
from config.reader import read_registry
from config.registry import Registry
from config.units import format_duration, format_size
from simulator.calibration import read_calibration
from simulator.errors import UsageError
from simulator.models import costs_of, has_mps
from simulator.objectives import alone
from simulator.parallel import run_each
from simulator.progress import say, say_again
from simulator.report import Setting, table, write_json
from simulator.series import FinishedRun, Order, Series, set_up, simulate
from simulator.traces.readers import read_trace
from simulator.traces.synthetic_text import parse_synthetic, written
from simulator.traces.trace import Trace, map_models
from simulator.typical import typical

INTERRUPTED = 130
MEMORY_SAMPLES = 400
"""Number of memory samples in a run whose memory is plotted; at most one per second."""


def run(options: argparse.Namespace) -> int:
    """Simulate every requested combination of settings; returns the exit status.

    Raises:
        ConfigError: the registry is invalid.
        UsageError: the command line is invalid.
        StudyError: a shape, trace or calibration is invalid.
    """
    if options.ttft_scale and options.tpot_scale and len(options.slo_scale) > 1:
        raise UsageError("--slo-scale: has no effect together with both --ttft-scale and --tpot-scale")
    try:
        series, settings = _series(options)
        orders = _orders(settings, series.trace.duration, drawn=options.png is not None)
        ran = run_each(simulate, series, orders, jobs=options.jobs, done=_say_run)
        print(table([each.row for each in ran]))
        _write(options, series, ran)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def open_trace(options: argparse.Namespace) -> Trace:
    """Open the trace that the command line names. Raises: StudyError."""
    if options.synthetic is None:
        return read_trace(options.trace, duration=options.duration, seed=options.seed or 0)
    synthetic = parse_synthetic(options.synthetic)
    if options.seed is not None:
        synthetic = replace(synthetic, seed=options.seed)
    say(f"trace: {written(synthetic)}")
    trace = synthetic.trace()
    return trace if options.duration is None else trace.window(0.0, options.duration)


def _series(options: argparse.Namespace) -> tuple[Series, list[Setting]]:
    registry = read_registry(options.registry, serving=False)
    calibration = read_calibration(options.calibration) if options.calibration else read_calibration()
    series = Series(
        registry,
        _mapped(open_trace(options), registry),
        costs_of(registry.models, calibration),
        calibration,
        capacity=int(SHARE * (options.gpu_memory or calibration.memory_bytes)),
        workers=options.workers,
        ttft_scale=options.ttft_scale,
        tpot_scale=options.tpot_scale,
        validate=options.validate,
        mps=has_mps(registry) if options.mps is None else options.mps == "on",
        warmed=options.warmed,
    )
    gpus = options.gpus or [len(registry.pool.devices)]
    policies = options.policy or [registry.scheduler.policy]
    settings = [
        Setting(policy, number, rate, slo, options.seed or 0)
        for policy, number, rate, slo in product(policies, gpus, options.rate_scale, options.slo_scale)
    ]
    _say_machine(series, gpus, set_up(series, settings[0]))
    return (_with_base(series) if options.slo_base == "alone" else series), settings


def _with_base(series: Series) -> Series:
    registry = alone(
        series.registry, series.trace, series.costs, series.calibration, capacity=series.capacity, report=say_again
    )
    for before, model in zip(series.registry.models, registry.models, strict=True):
        if (slo := model.slo) == before.slo:
            continue
        say(f"alone: {model.name}: TTFT p95 {format_duration(slo.ttft)}, TPOT p95 {format_duration(slo.tpot)}")
    return dataclasses.replace(series, registry=registry)


def _mapped(trace: Trace, registry: Registry) -> Trace:
    """Load the trace into memory and map its models to the registry's. Raises: UsageError."""
    trace = trace.stored()
    if not trace.duration:
        raise UsageError("the trace holds no requests")
    mapping = map_models(trace, [model.name for model in registry.models])
    for name, stand_in in mapping.items():
        say(f"trace: {name} is served by {stand_in}")
    return trace.renamed(mapping).stored()


def _say_machine(series: Series, gpus: list[int], registry: Registry) -> None:
    numbers, workers = " or ".join(map(str, gpus)), registry.pool.workers_per_device
    shared = "computing at the same time (MPS)" if series.mps else "computing in turns"
    say(f"{numbers} GPUs with {format_size(series.capacity)} for Prism, {workers} workers on each, {shared}")
    machine, assumed = series.calibration.machine, ", ".join(series.calibration.assumptions)
    say(f"calibration: {machine}; assumed, not measured: {assumed or 'nothing'}")


def _orders(settings: list[Setting], duration: float, *, drawn: bool) -> list[Order]:
    """One order per setting; if the runs are to be plotted, one run per policy samples its memory."""
    looked_at = typical(settings) if drawn else []
    every = max(1.0, duration / MEMORY_SAMPLES)
    return [Order(setting, every if setting in looked_at else None) for setting in settings]


def _say_run(ran: FinishedRun) -> None:
    say_again("")
    say(ran.summary)


def _write(options: argparse.Namespace, series: Series, ran: list[FinishedRun]) -> None:
    if options.json is not None:
        write_json([each.row for each in ran], options.json)
    if options.png is not None:
        # Imported here because matplotlib takes a second.
        from simulator.chart import draw

        draw(options.png, ran, capacity=series.capacity)
