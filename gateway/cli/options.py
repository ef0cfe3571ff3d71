"""Options that several commands share, and the types of options' values."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from config.registry import default_admin_socket
from config.units import parse_duration

SOCKET_VARIABLE = "PRISM_ADMIN_SOCKET"

AddParser = Callable[..., argparse.ArgumentParser]
"""Adds a subcommand's parser to `prism`: argparse's `add_parser`."""


def add_admin_socket(parser: argparse.ArgumentParser) -> None:
    default = os.environ.get(SOCKET_VARIABLE) or default_admin_socket()
    text = f"default: ${SOCKET_VARIABLE} or {default}"
    parser.add_argument("--admin-socket", type=Path, default=Path(default), metavar="PATH", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def port(text: str) -> int:
    """
    Raises:
        ArgumentTypeError: the text is not a port.
    """
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """
    Raises:
        ArgumentTypeError: the text is not a duration.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
