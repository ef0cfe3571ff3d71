"""`prism simulate`: serves a trace in virtual time."""

from __future__ import annotations

import argparse

from config.errors import ConfigError, PrismError
from gateway.cli.options import AddParser
from simulator.arguments import add_arguments


def add(add_parser: AddParser) -> None:
    parser = add_parser("simulate", help="serve a trace in virtual time with the same scheduler")
    add_arguments(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from simulator.errors import UsageError

    try:
        from simulator import command
    except ModuleNotFoundError as error:
        raise PrismError(f"there is no {error.name}; install prism-serving[bench]") from error
    try:
        return command.run(options)
    except UsageError as error:
        raise ConfigError([f"prism simulate: {error}"]) from error
