"""How long a model takes to serve, from wherever it is: `python -m bench.activation`.

Models of real shapes with random weights, a gateway of its own, and one streamed chat of 256 tokens at a time for a
model that is not active. What it waited for depends on where the model was:

    cold      nowhere: SGLang's own server is started for it, as without Prism (only if asked for; slow)
    disk      on disk: its first activation reads the checkpoint into the weight store (new files: still in page cache);
              with --dummy nowhere, and it makes the weights there
    blank     in host memory, and a worker without any model is there
    parked    in host memory, and a worker has kept its skeleton
    other     in host memory, and every worker but the reserve serves another model

Everything is seen from outside, by HTTP and the admin socket; the phases within a worker are the worker's own account.
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
    parser = Parser(prog="bench.activation", description="From a request for a model that is not active to its token.")
    parser.add_argument("--out", type=Path, metavar="PREFIX", help="write PREFIX.json, PREFIX.md and PREFIX.png")
    parser.add_argument("--models", type=names, default=DEFAULT_MODELS, help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--states", type=states, default=DEFAULT_STATES, help=f"of {', '.join(STATES)}")
    parser.add_argument("--rounds", type=positive_int, default=5, help="of each state but cold and disk: they have one")
    parser.add_argument("--tiny", action="store_true", help="shrunken models; on a CPU without AMX, leave fp8 out")
    parser.add_argument(
        "--dummy", action="store_true", help="weights: dummy; nothing is written to disk but tokenizers"
    )
    parser.add_argument("--folder", type=Path, metavar="DIR", help="where models are, or are made and kept")
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu")
    parser.add_argument("--engine", choices=get_args(EngineName), default="sglang")
    parser.add_argument("--workers", type=positive_int, default=4)
    parser.add_argument("--reserve", type=int, default=1, help="workers kept blank in the state `other`")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE", help=SETTING_HELP)
    parser.add_argument("--fill-kv", type=size, metavar="SIZE", help="evict the largest model with that much KV, too")
    parser.add_argument("--decode", action="store_true", help="tokens/s, TTFT of the largest model; with cold of both")
    parser.add_argument("--neighbour", action="store_true", help="TPOT of the smallest while the largest is copied")
    parser.add_argument("--idle", action="store_true", help="what workers take of a core when nobody asks")
    parser.add_argument("--kill", action="store_true", help="until a worker that is killed is replaced")
    parser.add_argument("--cold-models", type=names, default=None, help="only these from cold; otherwise all")
    parser.add_argument("--cold-args", default=COLD_ON_GPU, metavar="ARGS", help="for SGLang's own server")
    parser.add_argument("--swaps", type=Path, metavar="FILE", help="what bench.swaps wrote, for its goals")
    parser.add_argument("--note", default="", help="a paragraph for the report: what missed its goal, and why")
    chosen = parser.parse_args(given)
    try:
        check(chosen)
    except UsageError as error:
        parser.error(str(error))
    return chosen


SETTING_HELP = "any key of the registry, such as pool.kv_memory=32GiB"


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
    """Raises: UsageError for what cannot be measured."""
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
        raise UsageError("the state cold needs a GPU: SGLang's own server does not start here as it is")
    if "cold" in chosen.states and chosen.dummy:
        raise UsageError("the state cold needs weights on disk, which --dummy does without")
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
    """By a signal; what has been measured is reported all the same, unless that is nothing."""
    try:
        await run.measure()
    except asyncio.CancelledError:
        if not run.measured.rounds:
            raise
        run.measured.stopped = True


def main() -> None:
    chosen = arguments()
    run_to_its_end("bench.activation", command(chosen))
