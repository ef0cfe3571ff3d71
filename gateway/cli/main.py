"""The command `prism`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from msgspec.structs import replace

from config.errors import ConfigError, OperatorError, PoolError, PrismError, RecordingError
from config.reader import read_registry
from config.registry import default_admin_socket
from config.units import format_duration, format_size, parse_duration
from enginepool.messages import Command, CommandResult
from gateway import device_memory
from gateway.cli import tables
from gateway.cli.client import run_command
from gateway.report import ModelsReport, Status, WorkersReport, read
from simulator.arguments import POLICIES, add_arguments

USAGE_ERROR = 2
INTERRUPTED = 130
SOCKET_VARIABLE = "PRISM_ADMIN_SOCKET"


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


def _serve(options: argparse.Namespace) -> int:
    from enginepool.process import set_up_logging
    from gateway import demo
    from gateway.server import serve

    registry = demo.registry(options.demo_dir) if options.demo else read_registry(options.registry)
    if options.port is not None:
        registry = replace(registry, gateway=replace(registry.gateway, port=options.port))
    set_up_logging(options.log_level)
    serve(
        registry,
        validate=options.validate,
        record=options.record,
        on_listening=lambda url: print(f"listening on {url}", flush=True),
    )
    return 0


def _replay(options: argparse.Namespace) -> int:
    from gateway.cli import replay

    return replay.run(options.recording, validate=options.validate, as_json=options.json)


def _simulate(options: argparse.Namespace) -> int:
    from simulator.errors import UsageError

    try:
        from simulator import command
    except ModuleNotFoundError as error:
        raise PrismError(f"there is no {error.name}; install prism-serving[bench]") from error
    try:
        return command.run(options)
    except UsageError as error:
        raise ConfigError([f"prism simulate: {error}"]) from error


def _check(options: argparse.Namespace) -> int:
    registry = read_registry(options.registry, serving=not options.simulate)
    pool = registry.pool
    workers = len(pool.devices) * pool.workers_per_device
    print(f"{options.registry}: ok; {len(registry.models)} models, {workers} workers, engine {pool.engine}")
    try:
        there = device_memory.capacities(pool)
    except PoolError as error:
        print(f"not checked here: {error}")
        return 0
    for device, nbytes in there.items():
        print(f"{device}: {format_size(nbytes)} for weights, workers and KV cache")
    faults = device_memory.never_fitting(registry, there)
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def _doctor(options: argparse.Namespace) -> int:
    from gateway.doctor import command

    return command.run(options.registry, as_json=options.json)


def _admin(options: argparse.Namespace) -> int:
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


def _warm(options: argparse.Namespace) -> int:
    from gateway.cli.warm import warm

    return 0 if warm(options.admin_socket, options.models, lambda line: print(line, flush=True)) else 1


class _Parser(argparse.ArgumentParser):
    """Reports a usage error in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="prism", description="Serves many large language models on few GPUs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    _add_serve(commands.add_parser("serve", help="serve the models of a registry"))
    check = commands.add_parser("check", help="validate a registry and report every mistake in it")
    check.add_argument("registry", type=Path, metavar="FILE")
    check.add_argument(
        "--simulate",
        action="store_true",
        help="validate for `prism simulate`: models may have a `shape` in place of files",
    )
    check.set_defaults(run=_check)
    doctor = commands.add_parser("doctor", help="check that this machine can serve, and say how to fix what it lacks")
    doctor.add_argument("registry", nargs="?", type=Path, metavar="FILE", help="also check what this registry needs")
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.set_defaults(run=_doctor)
    replayed = commands.add_parser("replay", help="re-run a recording and report the first decision that differs")
    replayed.add_argument("recording", type=Path, metavar="FILE", help="written by `prism serve --record`")
    replayed.add_argument(
        "--validate", action="store_true", help="check the invariants even if the recorded run did not"
    )
    replayed.add_argument("--json", action="store_true", help="print JSON, for programs")
    replayed.set_defaults(run=_replay)
    simulate = commands.add_parser("simulate", help="serve a trace in virtual time with the same scheduler")
    add_arguments(simulate)
    simulate.set_defaults(run=_simulate)

    def talks(name: str, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)
        default = os.environ.get(SOCKET_VARIABLE) or default_admin_socket()
        text = f"default: ${SOCKET_VARIABLE} or {default}"
        command.add_argument("--admin-socket", type=Path, default=Path(default), metavar="PATH", help=text)
        return command

    def admin(name: str, text: str) -> argparse.ArgumentParser:
        command = talks(name, text)
        command.add_argument("--json", action="store_true", help="print JSON, for programs")
        command.set_defaults(run=_admin)
        return command

    admin("status", "show everything at a glance")
    admin("models", "list models: state, workers, requests")
    admin("workers", "list workers: process, state, model")
    activate = admin("activate", "activate a model and wait until it can serve")
    activate.add_argument("model", metavar="MODEL")
    activate.add_argument("--worker", type=int, metavar="W", help="on this worker")
    evict = admin("evict", "evict a model from its workers once its running requests have finished")
    evict.add_argument("model", metavar="MODEL")
    evict.add_argument("--now", action="store_true", help="abort its running requests instead")
    warm = talks("warm", "compile all models' kernels ahead of time by sending warm-up requests")
    warm.add_argument("models", nargs="*", metavar="MODEL", help="only these models")
    warm.set_defaults(run=_warm)
    admin("drain", "refuse new requests and wait until none are in flight")
    admin("resume", "accept new requests again after a drain")
    policy = admin(
        "policy", "switch to another policy: requests wait, workers are emptied, weights stay in host memory"
    )
    policy.add_argument("policy", choices=POLICIES, metavar="NAME", help=f"one of {', '.join(POLICIES)}")
    within = "give up, changing nothing, if running requests take longer; default: 60s"
    policy.add_argument("--within", type=_seconds, default=60.0, metavar="TIME", help=within)
    admin("stop", "stop the gateway; requests in flight have the grace time to finish")
    return parser


def _add_serve(serve: argparse.ArgumentParser) -> None:
    what = serve.add_mutually_exclusive_group(required=True)
    what.add_argument("registry", nargs="?", type=Path, metavar="FILE", help="the registry (YAML)")
    what.add_argument(
        "--demo", action="store_true", help="serve three tiny models, generated on first use, on two workers"
    )
    serve.add_argument(
        "--demo-dir", type=Path, default=Path(".demo"), metavar="DIR", help="where the demo's models are kept"
    )
    serve.add_argument("--port", type=_port, metavar="P", help="override the registry's port; 0 picks a free one")
    serve.add_argument("--validate", action="store_true", help="check the scheduler's invariants after every event")
    record = "record all events and decisions for `prism replay`; overwrites FILE"
    serve.add_argument("--record", type=Path, metavar="FILE", help=record)
    serve.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    serve.set_defaults(run=_serve)


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"expected a port, 0 to 65535, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
