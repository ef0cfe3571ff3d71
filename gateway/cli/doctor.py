"""`prism doctor`: checks that this machine can serve."""

from __future__ import annotations

import argparse
from pathlib import Path

from gateway.cli.options import AddParser, add_json


def add(add_parser: AddParser) -> None:
    parser = add_parser("doctor", help="check that this machine can serve, and say how to fix what it lacks")
    parser.add_argument("registry", nargs="?", type=Path, metavar="FILE", help="also check what this registry needs")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from gateway.doctor import command

    return command.run(options.registry, as_json=options.json)
