"""Load test of an OpenAI-compatible server: `python -m bench.load --url ... --models ... --rate ... --duration ...`.

Arrivals are open-loop: requests leave on schedule, however slow the answers are. Prompts and answers have exactly the
requested number of tokens, by the server's own count; where that is impossible, the report states the deviation. To
that end each model gets one request before the clock starts, or some 200 without its tokenizer (`--tokenizer`, or
`--registry` for Prism).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from bench.load.client import list_models, session
from bench.load.counters import counters, named_folder
from bench.load.operating import Operator
from bench.load.plan import choose_models, make_plan, objectives
from bench.load.prompt_recipes import PromptRecipe, bodies_of, by_tokenizer, meet, stranger
from bench.load.replay import Replay
from bench.load.report import report
from bench.load.summary import summarize
from bench.load.warm_up import warm_up
from bench.load.workload import Lengths, parse_lengths, parse_popularity
from config.registry import default_admin_socket
from config.units import parse_duration
from simulator.command_line import Parser, positive_float, positive_int
from simulator.errors import StudyError, UsageError
from simulator.progress import say

LONGEST_BARE_SLO = 100.0
"""Seconds above which a number without a unit is assumed to be meant as milliseconds, and refused."""


# --- the command line -----------------------------------------------------------------------------------------


def parser() -> Parser:
    made = Parser(prog="bench.load", description="Open-loop load on an OpenAI-compatible server.")
    made.add_argument("--url", required=True, help="e.g. http://127.0.0.1:8000, without /v1")
    made.add_argument("--api-key", help="sent as a bearer token")
    made.add_argument("--models", default="all", help="comma-separated names, most popular first, or all")
    made.add_argument("--rate", type=positive_float, help=RATE_HELP)
    made.add_argument("--duration", type=duration, help="e.g. 60s or 10m; with --trace, how much of it")
    made.add_argument("--trace", type=Path, help=TRACE_HELP)
    made.add_argument("--time-scale", type=positive_float, default=1.0, metavar="X", help=TIME_SCALE_HELP)
    made.add_argument(
        "--burstiness", type=burstiness, default=1.0, help="coefficient of variation of the gaps; 1 is Poisson"
    )
    made.add_argument("--popularity", type=popularity, default=0.0, help="uniform or zipf:EXPONENT")
    made.add_argument("--prompt-tokens", type=lengths, default="lognormal:128,1024", help=LENGTHS_HELP)
    made.add_argument("--output-tokens", type=lengths, default="lognormal:64,512", help=LENGTHS_HELP)
    made.add_argument("--max-tokens", type=positive_int, help="maximum length of answers")
    made.add_argument("--max-prompt-tokens", type=positive_int, help="maximum length of prompts")
    made.add_argument("--tokenizer", type=named_folder, action="append", default=[], metavar="NAME=FOLDER")
    made.add_argument("--registry", type=Path, metavar="FILE", help="Prism's registry, to find tokenizers")
    made.add_argument("--warm-up", action="store_true", help=WARM_UP_HELP)
    made.add_argument("--admin-socket", type=Path, default=default_admin_socket(), metavar="PATH", help="for --warm-up")
    made.add_argument("--estimate", action="store_true", help=ESTIMATE_HELP)
    made.add_argument("--seed", type=int, default=0, help="random seed; the same seed gives the same requests")
    made.add_argument("--slo-ttft", type=slo, help="e.g. 500ms; default: stated by the server per model")
    made.add_argument("--slo-tpot", type=slo, help="e.g. 50ms; default: stated by the server per model")
    made.add_argument("--timeout", type=duration, default=300.0, help="time after which a request counts as failed")
    made.add_argument("--json", type=Path, help="write all figures to this file")
    made.add_argument("--png", type=Path, help="draw charts into this file")
    return made


RATE_HELP = "requests per second; a --trace is thinned or copied to it, not stretched in time"
TRACE_HELP = "CSV(.gz) of arrival_s, [model,] prompt_tokens, output_tokens; or ServeGen's rates (default: an hour)"
TIME_SCALE_HELP = "multiple of the --trace's time: 0.5 sends the same requests twice as fast, bursts and gaps alike"
WARM_UP_HELP = "Prism only: first warm up every model in every worker process, then restore the previous state"
ESTIMATE_HELP = (
    "send no requests in advance: without a tokenizer, prompt lengths are estimates, and answers may end early"
)
LENGTHS_HELP = "tokens: N, uniform:LOW-HIGH or lognormal:MEDIAN,P99"


def duration(text: str) -> float:
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return positive_float(str(value))


def slo(text: str) -> float:
    """Parse an objective into seconds; refuse numbers without a unit that must be meant as milliseconds."""
    value = duration(text)
    if value > LONGEST_BARE_SLO and text.strip()[-1].isdigit():
        raise argparse.ArgumentTypeError(f"{text} without a unit is seconds; for milliseconds write {text}ms")
    return value


def burstiness(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"expected 0 to 100, got {text}")
    return value


def lengths(text: str) -> Lengths:
    try:
        return parse_lengths(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error} (expected {LENGTHS_HELP})") from error


def popularity(text: str) -> float:
    try:
        return parse_popularity(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    made = parser()
    chosen = made.parse_args(given)
    if chosen.trace is None and (chosen.rate is None or chosen.duration is None):
        made.error("expected --rate and --duration, or --trace")
    if chosen.trace is None and chosen.time_scale != 1:
        made.error("--time-scale: only with --trace; otherwise change --rate")
    if not chosen.url.startswith(("http://", "https://")):
        made.error(f"--url: expected http://HOST:PORT, got {chosen.url}")
    chosen.url = chosen.url.rstrip("/").removesuffix("/v1")
    for output in (chosen.json, chosen.png):
        if output is not None and not output.absolute().parent.is_dir():
            made.error(f"{output}: there is no folder {output.absolute().parent}")
    return chosen


# --- the run --------------------------------------------------------------------------------------------------


async def load(chosen: argparse.Namespace) -> int:
    """Run the test; returns the exit code. Raises: StudyError."""
    async with session(chosen.api_key) as client:
        listed = await list_models(client, chosen.url)
        models = choose_models(chosen.models, listed)
        plan = make_plan(chosen, models)
        slos = objectives(chosen, listed, models)
        met = await get_acquainted(chosen, client, models)
        if chosen.warm_up:
            await warm_up(Operator(chosen.url, chosen.admin_socket, client), met)
        bodies = bodies_of(plan, met)
        say(f"{len(plan)} requests to {len(models)} models over {plan[-1].at:.1f} s")
        replay = Replay(client, chosen.url, plan, bodies, chosen.timeout)
        took = await run_until_stopped(replay)
    figures = summarize(replay.outcomes, slos, took)
    report(chosen, figures, replay.outcomes, slos)
    return exit_code(figures, replay.stopped)


async def get_acquainted(
    chosen: argparse.Namespace, client: aiohttp.ClientSession, models: Sequence[str]
) -> dict[str, PromptRecipe]:
    """Raises: StudyError."""
    known = counters(dict(chosen.tokenizer), chosen.registry, models)
    if not chosen.estimate:
        return await meet(client, chosen.url, models, known, chosen.seed, chosen.timeout)
    return {
        name: by_tokenizer(chosen.seed, name, known[name]) if name in known else stranger(chosen.seed, name)
        for name in models
    }


async def run_until_stopped(replay: Replay) -> float:
    """Run until done. Ctrl-C and SIGTERM end the sending, but the report is still written."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, replay.stop)
    try:
        return await replay.run()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def exit_code(figures: Mapping[str, Any], stopped: bool) -> int:
    if stopped:
        return 130
    return 0 if figures["all"]["completed"] else 1


def main() -> None:
    chosen = arguments()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(load(chosen)))
    except UsageError as error:
        print(f"bench.load: {error}", file=sys.stderr)
        sys.exit(2)
    except StudyError as error:
        print(f"bench.load: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
