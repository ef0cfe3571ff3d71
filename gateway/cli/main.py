"""The command `prism`: puts its subcommands together and turns errors into exit statuses."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from config.errors import ConfigError, PrismError, RecordingError
from gateway.cli import admin, check, doctor, replay, serve, simulate, warm

USAGE_ERROR = 2
INTERRUPTED = 130

COMMANDS = (
    serve.add,
    check.add,
    doctor.add,
    replay.add,
    simulate.add,
    admin.add_queries,
    admin.add_model_commands,
    warm.add,
    admin.add_gateway_commands,
)
"""In the order of `prism --help`. Each sets `run`, which takes the options and returns the exit status; slow imports
belong in there, so that `prism status` answers at once."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exits with 0 on success, 1 on failure, 2 on wrong usage or configuration, and 130 on Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except (ConfigError, RecordingError) as error:
        print(error, file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except PrismError as error:
        print(f"prism {options.command}: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="prism", description="Serves many large language models on few GPUs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for add in COMMANDS:
        add(commands.add_parser)
    return parser
