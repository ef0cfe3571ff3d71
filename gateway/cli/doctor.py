"""`prism doctor`: whether this machine is fit to serve."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.cli.options import AddParser, add_json


def add(add_parser: AddParser) -> None:
    parser = add_parser("doctor", help="look whether this machine is fit to serve, and say what to do")
    parser.add_argument("registry", nargs="?", type=Path, metavar="FILE", help="has it what this registry needs?")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway.doctor import command

    return command.run(options.registry, as_json=options.json)
