"""Measures Prism's own overhead next to that of its peers: `python -m bench.overhead`.

`direct` is this client talking to a plain aiohttp server. `prism` is this client talking to the gateway with a
simulated worker that gives the same answers. A peer is this client talking to the peer in front of the plain server.
Added latency is a percentile through a server minus the same percentile direct; requests alternate, so that noise
affects both alike.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from typing import Any

from bench.goals import comparison_table, goal_table
from bench.overhead import peers
from bench.overhead.comparison import FULL, PEERS, QUICK, SOAK, OverheadRun
from bench.subjects.processes import cancel_on_signals, run_to_its_end
from simulator.command_line import Parser, new_file
from simulator.errors import StudyError


def arguments() -> argparse.Namespace:
    parser = Parser(prog="bench.overhead", description="Measures the overhead of the gateway and of its peers.")
    parser.add_argument("--json", type=new_file, help="write all figures to this file")
    parser.add_argument("--no-peers", action="store_true", help="skip LiteLLM and sglang-router")
    parser.add_argument("--soak", action="store_true", help=f"measure memory growth over {SOAK[1]:,} requests")
    parser.add_argument("--quick", action="store_true", help="a smoke run without meaningful figures")
    return parser.parse_args()


async def overhead(chosen: argparse.Namespace) -> dict[str, Any]:
    """All figures of one run. Raises: StudyError."""
    run = OverheadRun(QUICK if chosen.quick else FULL, [] if chosen.no_peers else list(PEERS), chosen.soak)
    if run.peers:
        try:
            await peers.install()
        except StudyError as error:
            for name in list(run.peers):
                run.lose(name, error)
    await run.measure()
    return run.figures()


async def command(chosen: argparse.Namespace) -> int:
    cancel_on_signals()
    try:
        figures = await overhead(chosen)
    except StudyError as error:
        print(f"bench.overhead: {error}", file=sys.stderr)
        return 1
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=2) + "\n")
    print(f"\n{comparison_table(figures)}\n\n{goal_table(figures)}")
    return 0


def main() -> None:
    chosen = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    run_to_its_end("bench.overhead", command(chosen))
