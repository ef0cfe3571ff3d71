"""`prism check`: validates a registry against its models' files and this machine's devices."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from config.errors import PoolError
from config.reader import read_registry
from config.units import format_size
from gateway import device_memory
from gateway.cli.options import AddParser


def add(add_parser: AddParser) -> None:
    parser = add_parser("check", help="validate a registry and report every mistake in it")
    parser.add_argument("registry", type=Path, metavar="FILE")
    simulate = "validate for `prism simulate`: models may have a `shape` in place of files"
    parser.add_argument("--simulate", action="store_true", help=simulate)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    registry = read_registry(options.registry, serving=not options.simulate)
    pool = registry.pool
    workers = len(pool.devices) * pool.workers_per_device
    print(f"{options.registry}: ok; {len(registry.models)} models, {workers} workers, engine {pool.engine}")
    try:
        there = device_memory.capacities(pool)
    except PoolError as error:
        print(f"not checked here: {error}")
        return 0
    for device, nbytes in there.items():
        print(f"{device}: {format_size(nbytes)} for weights, workers and KV cache")
    faults = device_memory.never_fitting(registry, there)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0
