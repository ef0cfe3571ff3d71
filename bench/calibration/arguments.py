"""The command line of `python -m bench.calibration`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.calibration.plan import ROOM
from bench.calibration.worker_plan import PARTS
from bench.shapes import SHAPES
from config.errors import ShapeError
from config.shape import shape_of
from simulator.command_line import Parser, positive_int
from simulator.errors import UsageError

DEFAULT_MODELS = "llama-1b,llama-8b"
WORKER_MODELS = "llama-1b,llama-3b,llama-8b"
ENGINES = "engines"
"""The part that measures unmodified SGLang engines."""
ALL_PARTS = (ENGINES, *PARTS)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="bench.calibration", description="Measures the cost of steps on this GPU, for the simulator.")
    parser.add_argument("--models", type=_names, default=DEFAULT_MODELS, help=f"two or more of {', '.join(SHAPES)}")
    parser.add_argument(
        "--out", type=Path, metavar="FILE.json", help="write all measurements; a report is written next to it"
    )
    parser.add_argument(
        "--from",
        dest="raw",
        type=Path,
        metavar="FILE.json",
        help="earlier measurements, of which only --parts are repeated",
    )
    parser.add_argument(
        "--parts",
        type=_parts,
        metavar="PART[,PART...]",
        help=f"any of {', '.join(ALL_PARTS)}; default: all, or none with --from",
    )
    parser.add_argument(
        "--worker-models", type=_names, default=WORKER_MODELS, help="models for the measurements of Prism's own workers"
    )
    parser.add_argument("--folder", type=Path, help="folder of checkpoints; missing ones are created there")
    parser.add_argument("--device", default="cuda:0", help="device of Prism's own workers")
    parser.add_argument("--mps", choices=("on", "off", "both"), default="both", help="for Prism's own workers")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="update this calibration with the results")
    parser.add_argument(
        "--activation", type=Path, metavar="FILE", help="results of bench.activation, for parked, blank, disk and park"
    )
    parser.add_argument("--quick", action="store_true", help="skip the least important measurements")
    parser.add_argument(
        "--room", type=positive_int, default=ROOM, metavar="TOKENS", help="size of each model's KV cache"
    )
    parser.add_argument("--tiny", action="store_true", help="use shrunken models on a CPU, to try it out")
    chosen = parser.parse_args(given)
    if chosen.parts is None:
        chosen.parts = [] if chosen.raw else list(ALL_PARTS)
    try:
        _check(chosen)
    except UsageError as error:
        parser.error(str(error))
    return chosen


def _parts(text: str) -> list[str]:
    """The parts, in the order in which they are measured."""
    for name in (wanted := text.split(",")):
        if name not in ALL_PARTS:
            raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(ALL_PARTS)}")
    return [name for name in ALL_PARTS if name in wanted]


def _names(text: str) -> list[str]:
    """The models, ordered by size."""
    wanted = text.split(",")
    for name in wanted:
        if name not in SHAPES:
            raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(SHAPES)}")
    if len(set(wanted)) != len(wanted) or len(wanted) < 2:
        raise argparse.ArgumentTypeError(f"expected two different models or more, got {text}")
    try:
        return sorted(wanted, key=lambda name: shape_of(SHAPES[name]).weight_bytes)
    except (ShapeError, KeyError) as error:
        raise argparse.ArgumentTypeError(f"the simulator has no shape for one of {text}: {error}") from error


def _check(chosen: argparse.Namespace) -> None:
    if chosen.raw is None and chosen.out is None:
        raise UsageError("--out FILE.json is required, unless --from gives earlier measurements")
    if chosen.activation is not None and chosen.calibration is None:
        raise UsageError("--activation has no effect without --calibration FILE")
    if chosen.out is not None and chosen.out.suffix != ".json":
        raise UsageError(f"--out expects a file that ends in .json, got {chosen.out}")
    for path in (chosen.raw, chosen.calibration, chosen.activation):
        if path is not None and not path.is_file():
            raise UsageError(f"{path}: no such file")
