"""The commands that a running gateway carries out: each is one message over its admin socket, and one answer."""

from __future__ import annotations

import argparse
import json

from config.errors import OperatorError
from config.units import format_duration
from enginepool.messages import Command, CommandResult
from gateway.cli import tables
from gateway.cli.client import run_command
from gateway.cli.options import AddParser, add_admin_socket, add_json, seconds
from simulator.arguments import POLICIES


def add_queries(add_parser: AddParser) -> None:
    """What asks and changes nothing."""
    _add(add_parser, "status", "everything at a glance")
    _add(add_parser, "models", "every model: its state, where it runs, what waits")
    _add(add_parser, "workers", "every worker: its process, state and model")


def add_model_commands(add_parser: AddParser) -> None:
    activate = _add(add_parser, "activate", "bring a model into a worker, and wait until it serves")
    activate.add_argument("model", metavar="MODEL")
    activate.add_argument("--worker", type=int, metavar="W", help="into this one")
    evict = _add(add_parser, "evict", "take a model from its workers, after its running requests")
    evict.add_argument("model", metavar="MODEL")
    evict.add_argument("--now", action="store_true", help="abort its running requests")


def add_gateway_commands(add_parser: AddParser) -> None:
    _add(add_parser, "drain", "refuse new requests and wait until none is in flight")
    _add(add_parser, "resume", "take new requests again after a drain")
    text = "go on under another policy: requests wait, all workers are emptied, weights stay"
    policy = _add(add_parser, "policy", text)
    policy.add_argument("policy", choices=POLICIES, metavar="NAME", help=f"one of {', '.join(POLICIES)}")
    within = "what runs may take so long, else nothing changes; default: 60s"
    policy.add_argument("--within", type=seconds, default=60.0, metavar="TIME", help=within)
    _add(add_parser, "stop", "let requests in flight finish within the grace time, and end")


def _add(add_parser: AddParser, name: str, text: str) -> argparse.ArgumentParser:
    parser = add_parser(name, help=text)
    add_admin_socket(parser)
    add_json(parser)
    parser.set_defaults(run=_run)
    return parser


def _run(options: argparse.Namespace) -> int:
    command = Command(
        options.command,
        getattr(options, "model", ""),
        getattr(options, "worker", None),
        getattr(options, "now", False),
        getattr(options, "policy", ""),
        getattr(options, "within", 0.0),
    )
    result = run_command(options.admin_socket, command)
    if options.json:
        print(json.dumps({"ok": result.ok, "text": result.text, "seconds": result.seconds, **result.data}, indent=2))
    elif not result.ok:
        raise OperatorError(result.text)
    else:
        print(_as_text(options.command, result))
    return 0 if result.ok else 1


def _as_text(command: str, result: CommandResult) -> str:
    match command:
        case "status":
            return tables.render_status(result.data)
        case "models":
            return tables.render_models(result.data)
        case "workers":
            return tables.render_workers(result.data)
        case _:
            return f"{result.text} ({format_duration(result.seconds)})"
