"""`prism serve`: the gateway, in this process."""

from __future__ import annotations

import argparse
from pathlib import Path

from msgspec.structs import replace

from config.reader import read_registry
from gateway.cli.options import AddParser, port


def add(add_parser: AddParser) -> None:
    parser = add_parser("serve", help="serve the models of a registry")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("registry", nargs="?", type=Path, metavar="FILE", help="the registry, YAML")
    what.add_argument("--demo", action="store_true", help="three tiny models, made on the spot, on two workers")
    parser.add_argument("--demo-dir", type=Path, default=Path(".demo"), metavar="DIR", help="for the demo's models")
    parser.add_argument("--port", type=port, metavar="P", help="instead of the registry's; 0 takes a free one")
    parser.add_argument("--validate", action="store_true", help="check the scheduler's invariants after every event")
    record = "write all events and decisions there, for `prism replay`; an older file is replaced"
    parser.add_argument("--record", type=Path, metavar="FILE", help=record)
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
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
