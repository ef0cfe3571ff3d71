"""Tests many swaps under load: `python -m bench.swaps REGISTRY`, or with `--tiny --device cpu` on shrunken models.

It starts a gateway on the registry and sends chats to its models, the first of which is the most popular by Zipf's law.
With more models than workers, evictions happen by themselves; `--random-swaps` adds an operator who activates and
evicts models at random. First, every worker serves every model once, because first uses leave code and buffers in a
process. Before and after the load, all workers are brought into the same idle state, and memory in use is compared.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from bench.activation.run import make_models, registry_models
from bench.load.command import LENGTHS_HELP, duration, lengths, popularity
from bench.shapes import SHAPES
from bench.subjects.device_memory import device_memory
from bench.subjects.processes import cancel_on_signals, run_to_its_end
from bench.swaps.report import write_report
from bench.swaps.run import Soak
from simulator.command_line import Parser, new_file, positive_float, positive_int
from simulator.errors import StudyError

TINY_MODELS = ("llama-1b", "llama-3b", "llama-8b", "qwen3-0.6b", "qwen3-moe", "deepseek-mla")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(prog="bench.swaps", description="Load on more models than there are workers, and what it leaves.")
    parser.add_argument("registry", nargs="?", type=Path, help="as for `prism serve`; port and socket are overridden")
    parser.add_argument("--tiny", action="store_true", help="use shrunken models instead of a registry")
    parser.add_argument("--dummy", action="store_true", help="use dummy weights; only with --tiny")
    parser.add_argument("--models", default=",".join(TINY_MODELS), help="only with --tiny")
    parser.add_argument("--engine", default="sglang", help="only with --tiny")
    parser.add_argument("--workers", type=positive_int, default=4, help="only with --tiny")
    parser.add_argument("--device", default="cuda:0", help="device whose memory is monitored: cuda:N or cpu")
    parser.add_argument("--rate", type=positive_float, default=4.0, help="requests per second")
    parser.add_argument("--duration", type=duration, default=480.0, help="e.g. 60s or 8m")
    parser.add_argument("--popularity", type=popularity, default=1.0, help="uniform or zipf:EXPONENT")
    parser.add_argument("--prompt-tokens", type=lengths, default="lognormal:256,2048", help=LENGTHS_HELP)
    parser.add_argument("--output-tokens", type=lengths, default="lognormal:64,256", help=LENGTHS_HELP)
    parser.add_argument(
        "--random-swaps", type=int, default=0, metavar="N", help="number of random operator commands during the load"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=new_file, help="write all figures to this file")
    parser.add_argument(
        "--record", type=absolute, metavar="FILE", help="record the scheduler's decisions, for `prism replay`"
    )
    parser.set_defaults(trace=None, time_scale=1.0, burstiness=1.0, max_prompt_tokens=None, max_tokens=None)
    chosen = parser.parse_args(given)
    if (chosen.registry is None) != chosen.tiny:
        parser.error("expected a registry or --tiny")
    unknown = [name for name in chosen.models.split(",") if name not in SHAPES]
    if unknown:
        parser.error(f"--models: {', '.join(unknown)}: expected some of {', '.join(SHAPES)}")
    return chosen


def absolute(text: str) -> Path:
    return Path(text).absolute()


@contextmanager
def registry_of(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The registry to serve; relative paths start at its file's folder. Raises: StudyError."""
    if chosen.registry is None:
        with tempfile.TemporaryDirectory(prefix="prism-bench-models-") as made:
            yield tiny_registry(chosen, Path(made))
        return
    try:
        content = yaml.safe_load(chosen.registry.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise StudyError(f"{chosen.registry}: cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("models"), list):
        raise StudyError(f"{chosen.registry}: expected a registry with a list of models")
    for model in content["models"]:
        for key in {"path", "shape"} & {*model}:
            model[key] = str(chosen.registry.parent.absolute() / model[key])
    yield content


def tiny_registry(chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    names = chosen.models.split(",")
    return {
        "pool": {"engine": chosen.engine, "devices": [chosen.device], "workers_per_device": chosen.workers},
        "models": registry_models(chosen.engine, folder, names, dummy=chosen.dummy),
    }


async def command(chosen: argparse.Namespace) -> int:
    """Run the benchmark; returns 0 if every request was answered."""
    cancel_on_signals()
    try:
        with registry_of(chosen) as registry, device_memory(chosen.device) as memory:
            if chosen.tiny and chosen.engine != "simulated":
                folder = Path(registry["models"][0]["path"]).parent
                await make_models(folder, chosen.models.split(","), tiny=True, dummy=chosen.dummy)
            figures = await Soak(chosen, registry, memory).run()
        print(write_report(chosen, figures))
    except (StudyError, OSError) as error:
        print(f"bench.swaps: {error}", file=sys.stderr)
        return 1
    return 1 if figures["load"]["all"]["failed"] else 0


def main() -> None:
    chosen = arguments()
    run_to_its_end("bench.swaps", command(chosen))
