"""Describes and writes traces.

    python -m bench.traces describe FILE... | --synthetic TEXT            compares a trace with the Prism paper's
    python -m bench.traces make --out FILE FILE... | --synthetic TEXT     writes its requests as CSV(.gz)

Several files are merged into one trace with a common start.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from config.units import parse_duration
from simulator.command_line import Parser, positive_float, positive_int
from simulator.errors import StudyError, UsageError
from simulator.progress import say
from simulator.traces.readers import read_trace
from simulator.traces.statistics import describe
from simulator.traces.synthetic import Synthetic
from simulator.traces.synthetic_text import FORM, parse_synthetic, written
from simulator.traces.table import table
from simulator.traces.trace import Trace, merged
from simulator.traces.writer import write_requests


def parser() -> Parser:
    made = Parser(prog="bench.traces", description="Generates, reads and describes traces of requests to many models.")
    commands = made.add_subparsers(dest="command", required=True)
    for name, summary in (
        ("describe", "compare a trace with the Prism paper's"),
        ("make", "write the requests as CSV"),
    ):
        command = commands.add_parser(name, help=summary, description=summary)
        _add_source(command)
    commands.choices["make"].add_argument("--out", type=Path, required=True, help="CSV, or CSV.gz")
    return made


def _add_source(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="requests, or ServeGen's client rates, as CSV(.gz)"
    )
    command.add_argument("--synthetic", type=synthetic, metavar="TEXT", help=FORM)
    command.add_argument("--start", type=seconds, default=0.0, help="offset into the trace, e.g. 90s or 26h")
    command.add_argument("--duration", type=some_time, help="length to use; default: all, or 1h of ServeGen's")
    command.add_argument("--rate", type=positive_float, help="mean requests per second, by thinning or copying")
    command.add_argument("--models", type=positive_int, help="ServeGen only: number of clients to draw")
    command.add_argument("--lengths", type=Path, metavar="FILE", help="ServeGen only: file of token lengths")
    command.add_argument("--seed", type=int, default=0, help="random seed for files; synthetic traces have their own")


def synthetic(text: str) -> Synthetic:
    try:
        return parse_synthetic(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def seconds(text: str) -> float:
    try:
        value = parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0 s, got {text}")
    return value


def some_time(text: str) -> float:
    return positive_float(str(seconds(text)))


def open_trace(chosen: argparse.Namespace) -> Trace:
    """Open the trace that the command line names. Raises: StudyError."""
    if chosen.synthetic is not None:
        say(written(chosen.synthetic))
        whole: Trace = chosen.synthetic.trace()
        trace = whole.window(chosen.start, whole.duration if chosen.duration is None else chosen.duration)
        return trace if chosen.rate is None else trace.at_rate(chosen.rate, chosen.seed)
    traces = [
        read_trace(
            path,
            start=chosen.start,
            duration=chosen.duration,
            models=chosen.models,
            lengths=chosen.lengths,
            rate=chosen.rate if len(chosen.files) == 1 else None,
            seed=chosen.seed,
        )
        for path in chosen.files
    ]
    together = merged(traces)
    return together.at_rate(chosen.rate, chosen.seed) if len(traces) > 1 and chosen.rate is not None else together


def main(given: Sequence[str] | None = None) -> None:
    made = parser()
    chosen = made.parse_args(given)
    if bool(chosen.files) == (chosen.synthetic is not None):
        made.error("expected files or --synthetic, and not both")
    if chosen.seed < 0:
        made.error("--seed: expected at least 0")
    try:
        trace = open_trace(chosen)
        if chosen.command == "make":
            print(f"{write_requests(trace, chosen.out)} requests written to {chosen.out}")
        else:
            print(table(describe(trace)))
    except StudyError as error:
        print(f"bench.traces: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
