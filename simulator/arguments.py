"""The options of `prism simulate`, separate from the simulation because that is slow to import."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from config.registry import SchedulerConfig
from config.units import parse_duration, parse_size
from simulator.command_line import new_file, new_png, positive_float, positive_int

T = TypeVar("T")

POLICIES = get_args(get_type_hints(SchedulerConfig)["policy"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--registry", type=Path, required=True, metavar="FILE", help="the registry; models may have a `shape` alone")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--trace", type=Path, metavar="FILE", help="requests, or ServeGen's client rates, as CSV(.gz)")
    source.add_argument("--synthetic", metavar="TEXT", help="e.g. zipf:models=58,rate=20; see bench.traces")
    add("--duration", type=_above_zero(parse_duration), help="simulate only this much of the trace, e.g. 10m")
    add(
        "--policy",
        type=_listed(_policy),
        metavar="P[,P...]",
        help=f"default: the registry's; any of {', '.join(POLICIES)}",
    )
    add("--gpus", type=_listed(positive_int), metavar="N[,N...]", help="default: the number of devices in the registry")
    add(
        "--gpu-memory",
        type=_above_zero(parse_size),
        metavar="SIZE",
        help="memory per GPU, e.g. 80GiB; default: the calibration's",
    )
    add("--mps", choices=("on", "off"), help="whether the workers of a GPU share it through MPS; default: pool.mps")
    add("--warmed", action="store_true", help="assume that every worker has served every model before")
    add("--workers", type=positive_int, metavar="N", help="workers per GPU; default: the registry's")
    add(
        "--rate-scale",
        type=_listed(positive_float),
        default=[1.0],
        metavar="X[,Y...]",
        help="multiples of the trace's rate",
    )
    alone = (
        "`alone`: each model's p95 when it serves its part of the trace alone on a GPU; default: the registry's SLOs"
    )
    add("--slo-base", choices=("registry", "alone"), default="registry", metavar="BASE", help=alone)
    add("--slo-scale", type=_listed(positive_float), default=[1.0], metavar="X[,Y...]", help="multiples of both SLOs")
    for objective in ("ttft", "tpot"):
        add(
            f"--{objective}-scale",
            type=positive_float,
            metavar="X",
            help=f"multiple of the {objective.upper()} SLO, instead of --slo-scale",
        )
    add("--seed", type=_seed, metavar="N", help="random seed for what is drawn from the trace")
    add("--calibration", type=Path, metavar="FILE", help="costs of steps and activations; default: an H200's")
    add("--jobs", type=positive_int, default=1, metavar="N", help="number of runs to simulate in parallel")
    add("--png", type=new_png, metavar="FILE", help="write a page of plots of all runs")
    add("--json", type=new_file, metavar="FILE", help="write a list with one entry per run")
    add("--validate", action="store_true", help="check the scheduler's invariants after every event")


def _listed(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    def values(text: str) -> list[T]:
        try:
            return [read(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected numbers separated by commas, got {text!r}") from error

    return values


def _policy(text: str) -> str:
    if text not in POLICIES:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(POLICIES)}, got {text!r}")
    return text


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 0, got {text!r}")
    return value


def _above_zero(parse: Callable[[str], float]) -> Callable[[str], float]:
    def value(text: str) -> float:
        try:
            parsed = parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if parsed <= 0:
            raise argparse.ArgumentTypeError(f"expected more than 0, got {text!r}")
        return parsed

    return value
