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
    made = Parser(prog="bench.evaluation --real", description="Policies on this machine's GPUs, beside the simulator.")
    add = made.add_argument
    add("--real", action="store_true", help=argparse.SUPPRESS)
    add("--registry", type=Path, metavar="FILE", help="else llamas of 1B, 3B and 8B with random weights")
    add("--gpus", type=positive_int, metavar="N", help="else all that there are; not with --registry")
    add("--memory", type=listed(parse_size), metavar="SIZE[,...]", help="of each GPU; else 73GiB, or the registry's")
    add("--traces", nargs="+", default=["zipf-5", "zipf-8"], metavar="TRACE", help=TRACES_HELP)
    add("--rate", type=positive_float, metavar="R", help="requests/s of zipf-SEED; else 3 for each GPU")
    add("--rate-scales", type=listed(positive_float), default=[1.0], metavar="X[,...]", help="of the traces' rate")
    add("--time-scale", type=positive_float, default=1.0, metavar="X", help="of the traces' time; 0.5: twice as fast")
    add("--duration", type=duration, default=60.0, help="what is judged of a run; 60s")
    add("--warm-up", type=duration, default=20.0, help="of the trace before that, which is not; 20s")
    add("--max-prompt-tokens", type=positive_int, metavar="N", help="no prompt of a trace is longer")
    add("--max-tokens", type=positive_int, metavar="N", help="no answer is")
    add("--policies", type=listed(policy), default=["prism", "space", "lru"], metavar="P[,...]")
    add("--mps", type=listed(mps), default=[False], metavar="on,off", help="else off")
    add("--repeats", type=positive_int, default=1, metavar="N")
    add("--budget", type=duration, metavar="TIME", help="no run begins that would not end within it")
    add("--resume", action="store_true", help="keep the rows that are there, and skip what they have")
    add("--simulate-only", action="store_true", help="nothing is measured: what the simulator says beforehand")
    add("--calibration", type=Path, default=H200, metavar="FILE", help="of the simulator; else an H200's")
    add("--folder", type=Path, metavar="DIR", help="where models are made, and kept for the next time")
    add("--tiny", action="store_true", help="models shrunken to megabytes, on the CPU with the engine transformers")
    add("--details", type=Path, metavar="DIR", help="each run's requests, the gateway's logs and recordings")
    add("--seed", type=int, default=0, help="of prompts' text")
    add("--out", type=Path, default=OUT, metavar="DIR", help=f"{OUT} if not said")
    return made


def arguments(given: list[str]) -> argparse.Namespace:
    made = parser()
    chosen = made.parse_args(given)
    if chosen.registry is not None and (chosen.gpus is not None or chosen.tiny):
        made.error("--gpus, --tiny: not with a --registry, which says what there is")
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
