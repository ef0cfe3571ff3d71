"""The command line of `python -m bench.evaluation --real`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bench.evaluation.real.scenarios import can_share_by_mps
from bench.load.command import duration
from config.units import parse_size
from simulator.arguments import POLICIES
from simulator.calibration import H200
from simulator.command_line import Parser, positive_float, positive_int

T = TypeVar("T")

OUT = Path("docs/results")
TRACES_HELP = "zipf-SEED, a synthetic trace (see bench.traces), or a CSV file"


def parser() -> Parser:
    made = Parser(
        prog="bench.evaluation --real", description="Compares policies on this machine's GPUs with the simulator."
    )
    add = made.add_argument
    add("--real", action="store_true", help=argparse.SUPPRESS)
    add("--registry", type=Path, metavar="FILE", help="default: Llamas of 1B, 3B and 8B with random weights")
    add("--gpus", type=positive_int, metavar="N", help="default: all; not with --registry")
    add(
        "--memory",
        type=listed(parse_size),
        metavar="SIZE[,...]",
        help="memory per GPU; default: 73GiB, or the registry's",
    )
    add("--traces", nargs="+", default=["zipf-5", "zipf-8"], metavar="TRACE", help=TRACES_HELP)
    add("--rate", type=positive_float, metavar="R", help="requests/s of zipf-SEED; default: 3 per GPU")
    add(
        "--rate-scales",
        type=listed(positive_float),
        default=[1.0],
        metavar="X[,...]",
        help="multiples of the traces' rate",
    )
    add(
        "--time-scale",
        type=positive_float,
        default=1.0,
        metavar="X",
        help="multiple of the traces' time; 0.5 is twice as fast",
    )
    add("--duration", type=duration, default=60.0, help="judged part of a run; default: 60s")
    add("--warm-up", type=duration, default=20.0, help="part of the trace before it; default: 20s")
    add("--max-prompt-tokens", type=positive_int, metavar="N", help="maximum length of prompts")
    add("--max-tokens", type=positive_int, metavar="N", help="maximum length of answers")
    add("--policies", type=listed(policy), default=["prism", "space", "lru"], metavar="P[,...]")
    add("--mps", type=listed(mps), default=[False], metavar="on,off", help="else off")
    add("--repeats", type=positive_int, default=1, metavar="N")
    add("--budget", type=duration, metavar="TIME", help="start no run that would not end within this time")
    add("--resume", action="store_true", help="keep existing rows and run only missing ones")
    add("--simulate-only", action="store_true", help="measure nothing, only write the simulator's predictions")
    add("--calibration", type=Path, default=H200, metavar="FILE", help="for the simulator; default: an H200's")
    add("--folder", type=Path, metavar="DIR", help="folder in which models are created and kept")
    add("--tiny", action="store_true", help="use shrunken models on the CPU with the engine transformers")
    add("--details", type=Path, metavar="DIR", help="write each run's requests, and the gateway's logs and recordings")
    add("--seed", type=int, default=0, help="random seed for the prompts' text")
    add("--out", type=Path, default=OUT, metavar="DIR", help=f"output folder; default: {OUT}")
    return made


def arguments(given: list[str]) -> argparse.Namespace:
    made = parser()
    chosen = made.parse_args(given)
    if chosen.registry is not None and (chosen.gpus is not None or chosen.tiny):
        made.error("--gpus, --tiny: not allowed with --registry, which determines them")
    if True in chosen.mps and not can_share_by_mps():
        made.error("--mps on: this version's registry has no pool.mps")
    return chosen


def listed(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    def values(text: str) -> list[T]:
        try:
            return [read(part) for part in text.split(",")]
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return values


def policy(text: str) -> str:
    if text not in POLICIES:
        raise ValueError(f"expected of {', '.join(POLICIES)}, got {text!r}")
    return text


def mps(text: str) -> bool:
    if text not in ("on", "off"):
        raise ValueError(f"expected on or off, got {text!r}")
    return text == "on"
