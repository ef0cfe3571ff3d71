"""Measures how long a request waits for a model that is not active: `python -m bench.activation`.

It runs its own gateway with models of real shapes and random weights, and sends streamed chats of 256 tokens, one at a
time, to a model that is not active. What a chat waits for depends on the model's state:

    cold      not loaded anywhere: SGLang's own server is started, as without Prism (only on request; slow)
    disk      on disk: the first activation reads the checkpoint into the weight store (newly written files, so they
              are in the page cache); with --dummy, it generates the weights
    blank     in host memory, with a worker without any model available
    parked    in host memory, with a worker that has kept its skeleton
    other     in host memory, while every worker except the reserve serves another model

All times are measured from outside, by HTTP and the admin socket; the phases within a worker are reported by it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import yaml

from bench.activation.report import write_report
from bench.activation.run import ActivationRun
from bench.shapes import SHAPES
from bench.subjects.device_memory import device_memory
from bench.subjects.processes import STOPPED, cancel_on_signals, run_to_its_end
from config.registry import EngineName
from config.units import parse_size
from simulator.command_line import Parser, positive_int
from simulator.errors import StudyError, UsageError

STATES = ("cold", "disk", "blank", "parked", "other")
DEFAULT_MODELS = "llama-1b,llama-3b,llama-8b,qwen3-8b-fp8,qwen3-moe,deepseek-mla"
DEFAULT_STATES = "disk,blank,parked,other"
COLD_ON_GPU = (
    "--attention-backend triton --sampling-backend pytorch --grammar-backend llguidance --mem-fraction-static 0.5"
    " --cuda-graph-bs-decode 1 2 4 8 16 24 32"
)


# --- the command line -----------------------------------------------------------------------------------------


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="bench.activation", description="Time from a request for an inactive model to its first token."
    )
    parser.add_argument("--out", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md and PREFIX.png")
    parser.add_argument("--models", type=names, default=DEFAULT_MODELS, help=f"any of {', '.join(SHAPES)}")
    parser.add_argument("--states", type=states, default=DEFAULT_STATES, help=f"any of {', '.join(STATES)}")
    parser.add_argument("--rounds", type=positive_int, default=5, help="per state; cold and disk always have one")
    parser.add_argument(
        "--tiny", action="store_true", help="use shrunken models; without AMX on the CPU, leave fp8 out"
    )
    parser.add_argument("--dummy", action="store_true", help="use dummy weights: only tokenizers are written to disk")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="folder of models; missing ones are created and kept"
    )
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--engine", choices=get_args(EngineName), default="sglang")
    parser.add_argument("--workers", type=positive_int, default=4)
    parser.add_argument("--reserve", type=int, default=1, help="workers kept blank in the state `other`")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help=SETTING_HELP)
    parser.add_argument(
        "--fill-kv", type=size, metavar="SIZE", help="also evict the largest model with that much KV cache"
    )
    parser.add_argument(
        "--decode",
        action="store_true",
        help="measure tokens/s and TTFT of the largest model; with cold, also of SGLang's server",
    )
    parser.add_argument(
        "--neighbour", action="store_true", help="measure TPOT of the smallest model while the largest is copied"
    )
    parser.add_argument("--idle", action="store_true", help="measure the CPU use of idle workers")
    parser.add_argument("--kill", action="store_true", help="measure how soon a killed worker is replaced")
    parser.add_argument("--cold-models", type=names, default=None, help="measure only these from cold; default: all")
    parser.add_argument("--cold-args", default=COLD_ON_GPU, metavar="ARGS", help="for SGLang's own server")
    parser.add_argument("--swaps", type=Path, metavar="FILE", help="results of bench.swaps, to check its goals")
    parser.add_argument("--note", default="", help="a paragraph for the report, e.g. on missed goals")
    chosen = parser.parse_args(given)
    try:
        check(chosen)
    except UsageError as error:
        parser.error(str(error))
    return chosen


SETTING_HELP = "set any key of the registry, e.g. pool.kv_memory=32GiB"


def names(text: str) -> list[str]:
    wanted = text.split(",")
    for name in wanted:
        if name not in SHAPES:
            raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(SHAPES)}")
    return wanted


def states(text: str) -> list[str]:
    wanted = text.split(",")
    for state in wanted:
        if state not in STATES:
            raise argparse.ArgumentTypeError(f"{state} is not one of {', '.join(STATES)}")
    return wanted


def setting(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    if not key or not value:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return key, yaml.safe_load(value)


def size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def check(chosen: argparse.Namespace) -> None:
    """Raises: UsageError if what was asked for cannot be measured."""
    if chosen.neighbour and len(chosen.models) < 2:
        raise UsageError("--neighbour needs two models")
    if "blank" in chosen.states and (chosen.workers < 2 or len(chosen.models) < 2):
        raise UsageError("the state blank needs two workers and two models")
    others = chosen.workers - chosen.reserve
    if not 0 <= chosen.reserve < chosen.workers:
        raise UsageError(f"--reserve: expected 0 to {chosen.workers - 1}")
    if "other" in chosen.states and len(chosen.models) <= others:
        raise UsageError(f"the state other needs {others + 1} models for {chosen.workers} workers")
    if "cold" in chosen.states and chosen.device == "cpu":
        raise UsageError("the state cold needs a GPU: SGLang's own server does not start on a CPU unmodified")
    if "cold" in chosen.states and chosen.dummy:
        raise UsageError("the state cold needs weights on disk, so it excludes --dummy")
    if chosen.fill_kv and chosen.device == "cpu":
        raise UsageError("--fill-kv needs a GPU")
    if chosen.out is not None and not chosen.out.absolute().parent.is_dir():
        raise UsageError(f"--out: there is no folder {chosen.out.absolute().parent}")


# --- the run --------------------------------------------------------------------------------------------------


@contextmanager
def models_folder(chosen: argparse.Namespace) -> Iterator[Path]:
    if chosen.folder is not None:
        yield chosen.folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="prism-bench-models-") as made:
        yield Path(made)


async def command(chosen: argparse.Namespace) -> int:
    cancel_on_signals()
    try:
        with models_folder(chosen) as folder, device_memory(chosen.device) as memory:
            run = ActivationRun(chosen, folder, memory)
            await until_stopped(run)
        print(write_report(chosen, run.measured))
    except (StudyError, OSError) as error:
        print(f"bench.activation: {error}", file=sys.stderr)
        return 1
    return STOPPED if run.measured.stopped else 0


async def until_stopped(run: ActivationRun) -> None:
    """Run until done or stopped by a signal; what was measured until then is reported, unless that is nothing."""
    try:
        await run.measure()
    except asyncio.CancelledError:
        if not run.measured.rounds:
            raise
        run.measured.stopped = True


def main() -> None:
    chosen = arguments()
    run_to_its_end("bench.activation", command(chosen))
