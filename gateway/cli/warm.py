"""`prism warm`: compiles every model's kernels before the first client has to wait for them.

A kernel is compiled when a model first needs it, which takes up to a minute, and is kept on disk. So each model is
activated, makes its worker's warm-up requests, and is evicted again unless it was active before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from config.errors import OperatorError
from enginepool.messages import Command
from gateway.admin_client import read_models, read_workers, run_command
from gateway.cli.options import AddParser, add_admin_socket
from gateway.report import ModelState

POLL = 0.2
"""Seconds between two queries of the workers."""


def add(add_parser: AddParser) -> None:
    parser = add_parser("warm", help="compile all models' kernels ahead of time by sending warm-up requests")
    add_admin_socket(parser)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="only these models")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    return 0 if warm(options.admin_socket, options.models, lambda line: print(line, flush=True)) else 1


def warm(admin_socket: Path, wanted: Sequence[str], report: Callable[[str], None]) -> bool:
    """Warm the `wanted` models, or all if none are given, one after another; False if any could not be activated.

    Raises:
        OperatorError: no gateway answers, or it has no model of that name.
    """
    states = {model.name: model.state for model in read_models(admin_socket)}
    if unknown := [name for name in wanted if name not in states]:
        raise OperatorError(f"there is no model {', '.join(unknown)}; there are {', '.join(states)}")
    return all([_warm(admin_socket, name, states[name] is ModelState.ACTIVE, report) for name in wanted or states])


def _warm(admin_socket: Path, name: str, was_active: bool, report: Callable[[str], None]) -> bool:
    began = time.monotonic()
    activated = run_command(admin_socket, Command("activate", name))
    if not activated.ok:
        report(activated.text)
        return False
    ready = time.monotonic() - began
    while any(it.model == name and it.rehearsing for it in read_workers(admin_socket)):
        time.sleep(POLL)
    report(f"{name}: active after {ready:.1f} s, rehearsed after {time.monotonic() - began:.1f} s")
    if not was_active:
        run_command(
            admin_socket, Command("evict", name)
        )  # fails if it is pinned or somebody else has evicted it, which is fine
    return True
