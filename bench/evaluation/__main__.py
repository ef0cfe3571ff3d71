"""Compares the scheduler's policies with each other and with published figures, in the simulator:

    python -m bench.evaluation --traces ../shared/traces --jobs 2

Writes `scheduler.md`, `.json` and `.png`. Recorded traces are not part of the project; workloads whose files are
missing from the `--traces` folder are reported and skipped. With `--real`, it runs on the machine's GPUs
(`bench.evaluation.real`).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from bench.evaluation.chart import draw
from bench.evaluation.real import command as real
from bench.evaluation.report import NAME, write_report
from bench.evaluation.run import EvaluationPlan, evaluate
from bench.evaluation.scenarios import SCENARIOS, chosen
from bench.evaluation.trials import SearchEffort
from simulator.arguments import POLICIES
from simulator.calibration import H200, read_calibration
from simulator.command_line import Parser, positive_int
from simulator.errors import StudyError, UsageError

QUICK = SearchEffort(precision=1.3, placements=10, placements_elsewhere=5)
OUT = Path("docs/results")


def parser() -> Parser:
    made = Parser(prog="bench.evaluation", description="Compares the scheduler's policies in the simulator.")
    rows, policies = _names(SCENARIOS), _names(POLICIES)
    made.add_argument("--only", type=rows, metavar="ROW[,ROW...]", help=", ".join(SCENARIOS))
    made.add_argument("--policies", type=policies, default=list(POLICIES), metavar="P[,P...]", help="else all")
    made.add_argument(
        "--reference", default="prism-paper", metavar="P", help="policy that sets the fixed rates; default: prism-paper"
    )
    made.add_argument("--traces", type=Path, metavar="DIR", help="folder of recorded traces")
    made.add_argument("--calibration", type=Path, default=H200, metavar="FILE", help="default: an H200's")
    made.add_argument("--quick", action="store_true", help="coarse figures within a few minutes")
    made.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="number of parallel simulations")
    made.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=f"output folder; default: {OUT}")
    return made


def _names(known: Collection[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        given = text.split(",")
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"expected of {', '.join(known)}, got {', '.join(unknown)}")
        return given

    return names


def run(options: argparse.Namespace, command: str) -> list[Path]:
    """Run the evaluation; returns the files written. Raises: StudyError."""
    if options.reference not in POLICIES:
        raise UsageError(f"--reference: expected one of {', '.join(POLICIES)}, got {options.reference}")
    plan = EvaluationPlan(
        chosen(options.only, is_quick=options.quick),
        options.policies,
        options.reference,
        QUICK if options.quick else SearchEffort(),
        read_calibration(options.calibration),
        options.traces,
        options.jobs,
    )
    outcomes = evaluate(plan)
    if not outcomes:
        raise UsageError("nothing to compare: the files of all workloads are missing")
    written = write_report(plan, outcomes, command, options.out)
    picture = options.out / f"{NAME}.png"
    draw(picture, plan, outcomes)
    return [*written, picture]


def main(given: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if given is None else list(given)
    if "--real" in arguments:
        real.main(arguments)
    made = parser()
    options = made.parse_args(arguments)
    try:
        for path in run(options, shlex.join(["python", "-m", "bench.evaluation", *arguments])):
            print(path)
    except UsageError as error:
        made.error(str(error))
    except StudyError as error:
        print(f"bench.evaluation: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
