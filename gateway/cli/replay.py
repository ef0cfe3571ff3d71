"""`prism replay`: re-runs a recording and reports the first decision that differs."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.cli.options import AddParser, add_json


def add(add_parser: AddParser) -> None:
    parser = add_parser("replay", help="re-run a recording and report the first decision that differs")
    parser.add_argument("recording", type=Path, metavar="FILE", help="written by `prism serve --record`")
    validate = "check the invariants even if the recorded run did not"
    parser.add_argument("--validate", action="store_true", help=validate)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway.cli import comparison

    return comparison.run(options.recording, validate=options.validate, as_json=options.json)
