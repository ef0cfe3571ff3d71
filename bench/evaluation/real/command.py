"""The command `python -m bench.evaluation --real`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.evaluation.real.arguments import arguments
from bench.evaluation.real.run import PolicyComparison
from bench.subjects.processes import cancel_on_signals, run_to_its_end
from config.errors import ConfigError
from simulator.errors import StudyError


async def compare(chosen: argparse.Namespace, command: list[str]) -> int:
    """Run the comparison; returns the exit status, 1 if a run or a gateway failed."""
    cancel_on_signals()
    try:
        with _folder(chosen) as folder:
            comparison = PolicyComparison(chosen, command, folder)
            await comparison.run()
    except (StudyError, ConfigError, OSError) as error:
        print(f"bench.evaluation: {error}", file=sys.stderr)
        return 1
    print(comparison.results.json, comparison.results.page, sep="\n")
    return 1 if comparison.results.faults else 0


@contextmanager
def _folder(chosen: argparse.Namespace) -> Iterator[Path]:
    if chosen.folder is not None:
        yield chosen.folder.absolute()
        return
    with tempfile.TemporaryDirectory(prefix="prism-bench-models-") as made:
        yield Path(made)


def main(given: list[str]) -> None:
    chosen = arguments(given)
    run_to_its_end("bench.evaluation", compare(chosen, ["python", "-m", "bench.evaluation", *given]))
