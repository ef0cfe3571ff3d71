"""`prism replay`: a recorded run again, and whether it comes to the same."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.cli.options import AddParser, add_json


def add(add_parser: AddParser) -> None:
    parser = add_parser("replay", help="decide a recorded run again, and say whether it comes to the same")
    parser.add_argument("recording", type=Path, metavar="FILE", help="of `prism serve --record`")
    parser.add_argument("--validate", action="store_true", help="check the invariants, even if the first run did not")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway.cli import comparison

    return comparison.run(options.recording, validate=options.validate, as_json=options.json)
