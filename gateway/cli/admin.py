"""The commands that a running gateway carries out: one message over its admin socket, one answer back."""

from __future__ import annotations

import argparse
import json

from config.errors import OperatorError
from config.units import format_duration
from enginepool.messages import Command, CommandResult
from gateway import tables
from gateway.admin_client import run_command
from gateway.cli.options import AddParser, add_admin_socket, add_json, seconds
from gateway.report import ModelsReport, Status, WorkersReport, read
from simulator.arguments import POLICIES


def add_queries(add_parser: AddParser) -> None:
    """Commands that only ask."""
    _add(add_parser, "status", "show everything at a glance")
    _add(add_parser, "models", "list models: state, workers, requests")
    _add(add_parser, "workers", "list workers: process, state, model")


def add_model_commands(add_parser: AddParser) -> None:
    activate = _add(add_parser, "activate", "activate a model and wait until it can serve")
    activate.add_argument("model", metavar="MODEL")
    activate.add_argument("--worker", type=int, metavar="W", help="on this worker")
    evict = _add(add_parser, "evict", "evict a model from its workers once its running requests have finished")
    evict.add_argument("model", metavar="MODEL")
    evict.add_argument("--now", action="store_true", help="abort its running requests instead")


def add_gateway_commands(add_parser: AddParser) -> None:
    _add(add_parser, "drain", "refuse new requests and wait until none are in flight")
    _add(add_parser, "resume", "accept new requests again after a drain")
    text = "switch to another policy: requests wait, workers are emptied, weights stay in host memory"
    policy = _add(add_parser, "policy", text)
    policy.add_argument("policy", choices=POLICIES, metavar="NAME", help=f"one of {', '.join(POLICIES)}")
    within = "give up, changing nothing, if running requests take longer; default: 60s"
    policy.add_argument("--within", type=seconds, default=60.0, metavar="TIME", help=within)
    _add(add_parser, "stop", "stop the gateway; requests in flight have the grace time to finish")


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
        answer = {"ok": result.ok, "text": result.text, "seconds": result.seconds, **json.loads(result.data)}
        print(json.dumps(answer, indent=2))
    elif not result.ok:
        raise OperatorError(result.text)
    else:
        print(_as_text(options.command, result))
    return 0 if result.ok else 1


def _as_text(command: str, result: CommandResult) -> str:
    match command:
        case "status":
            return tables.render_status(read(result, Status))
        case "models":
            return tables.render_models(read(result, ModelsReport).models)
        case "workers":
            return tables.render_workers(read(result, WorkersReport).workers)
        case _:
            return f"{result.text} ({format_duration(result.seconds)})"
