"""Faults at random under load: whoever is killed, stopped or cut, no other request may notice.

    python -m tests.chaos [--engine sglang] [--faults 100] [--seed 1] [--record FILE.jsonl]

Fault number N is of the same kind in every run with that seed. With --record a run goes on where another ended, until
there are so many faults of this engine and seed, and the table sums up all that the file has. Exits with 1 at the first
broken promise, and says which fault it was.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from tests.chaos.record import Record, Records, table
from tests.chaos.run import Batch, Plan

BATCH = 20
"""Faults that one gateway lives through."""
LINES = 80
"""Of the gateway's log, to be told with what went wrong."""


def main() -> int:
    given = _arguments()
    records, problem = Records(given.record), ""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the gateway is ended in any case
    with tempfile.TemporaryDirectory(prefix="prism-chaos-") as folder:
        while not problem and (start := records.next_number(given.engine, given.seed)) < given.faults:
            plan = Plan(given.engine, given.seed, range(start, min(given.faults, start + BATCH)))
            try:
                problem = _run(plan, Path(folder), records)
            except KeyboardInterrupt:
                problem = "interrupted"
    print(table(records.all))
    print(problem)
    return 1 if problem else 0


def _run(plan: Plan, folder: Path, records: Records) -> str:
    with tempfile.TemporaryDirectory(dir=folder) as own:
        batch = Batch(plan, folder / "models", Path(own), lambda record: _keep(record, records))
        batch.run()
    if batch.problem:
        print("\n".join(batch.log[-LINES:]))
    return batch.problem


def _keep(record: Record, records: Records) -> None:
    records.add(record)
    print(f"{record.number} {record.kind}: {record.victim or 'no victim'}, {record.seconds:g} s", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=("sglang", "transformers"), default="sglang")
    parser.add_argument("--faults", type=int, default=100, help="of this engine and seed, those in --record among them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON lines, added to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
