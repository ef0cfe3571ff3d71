"""`prism serve`: runs the gateway in this process."""

from __future__ import annotations

import argparse
from pathlib import Path

from msgspec.structs import replace

from config.reader import read_registry
from gateway.cli.options import AddParser, port


def add(add_parser: AddParser) -> None:
    parser = add_parser("serve", help="serve the models of a registry")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("registry", nargs="?", type=Path, metavar="FILE", help="the registry (YAML)")
    demo = "serve three tiny models, generated on first use, on two workers"
    what.add_argument("--demo", action="store_true", help=demo)
    folder = "where the demo's models are kept"
    parser.add_argument("--demo-dir", type=Path, default=Path(".demo"), metavar="DIR", help=folder)
    parser.add_argument("--port", type=port, metavar="P", help="override the registry's port; 0 picks a free one")
    parser.add_argument("--validate", action="store_true", help="check the scheduler's invariants after every event")
    record = "record all events and decisions for `prism replay`; overwrites FILE"
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
