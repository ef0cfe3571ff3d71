"""Measures the cost of one scheduler decision in a large pool: `python -m bench.decision`.

The real scheduler is driven in virtual time through a full pool with more models than it can serve, after the policy
has settled (`bench/decision/pool.py`). For each event, the time from the event to the list of actions is measured. A
global decision is an event after which the policy activates, evicts or drains a model; other events count under their
own kind only.

Times are milliseconds of this process's CPU time. As in the gateway, objects that exist at the start are exempt from
garbage collection; collections count towards the event in which they happen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence

from bench.decision.pool import CrowdedPool
from bench.machine import describe_machine
from config.registry import PolicyName
from simulator.arguments import POLICIES
from simulator.command_line import Parser, new_file, positive_int
from simulator.percentiles import percentile
from simulator.progress import say

DECISIONS = "global decision"
GOAL = 100.0
"""Maximum of a global decision's 99th percentile, in milliseconds."""
COLUMNS = ("events", "median", "p95", "p99", "worst")

Figures = Mapping[str, Mapping[str, float]]
"""Milliseconds, by kind of event, then by column."""


def measure(policy: PolicyName, *, models: int, gpus: int, workers_per_gpu: int, events: int) -> Figures:
    taken: dict[str, list[float]] = defaultdict(list)

    def timed(kind: str, seconds: float, decided: bool) -> None:
        taken[kind].append(1000 * seconds)
        if decided:
            taken[DECISIONS].append(1000 * seconds)

    CrowdedPool(policy, models=models, gpus=gpus, workers_per_gpu=workers_per_gpu).run(events, timed)
    return {kind: _figures(taken[kind]) for kind in sorted(taken, key=lambda kind: (kind == DECISIONS, kind))}


def _figures(taken: Sequence[float]) -> dict[str, float]:
    ranks = {name: percentile(taken, rank) or 0.0 for name, rank in (("median", 50), ("p95", 95), ("p99", 99))}
    return {"events": len(taken), **ranks, "worst": max(taken)}


def table(figures: Mapping[str, Figures]) -> str:
    lines = [f"{'policy':12} {'event':21}" + "".join(f" {column:>8}" for column in COLUMNS) + "   ms"]
    for policy, kinds in figures.items():
        for kind, found in kinds.items():
            times = "".join(f" {found[column]:8.2f}" for column in COLUMNS[1:])
            lines.append(f"{policy:12} {kind:21} {found['events']:8.0f}{times}")
    for policy, kinds in figures.items():
        if DECISIONS in kinds:
            found = kinds[DECISIONS]
            reached = "reached" if found["p99"] <= GOAL else "MISSED"
            lines.append(
                f"goal: {policy}, p99 of a global decision at most {GOAL:.0f} ms: {reached} "
                f"({found['p99']:.1f}, worst {found['worst']:.1f})"
            )
    return "\n".join(lines)


def _policies(text: str) -> list[str]:
    given = text.split(",")
    if unknown := [name for name in given if name not in POLICIES]:
        raise argparse.ArgumentTypeError(f"expected of {', '.join(POLICIES)}, got {', '.join(unknown)}")
    return given


MOST_GPUS = 1000


def arguments() -> argparse.Namespace:
    parser = Parser(prog="bench.decision", description="Measures the cost of one scheduler decision in a large pool.")
    parser.add_argument("--models", type=positive_int, default=2000)
    parser.add_argument("--gpus", type=positive_int, default=MOST_GPUS, help=f"{MOST_GPUS} at most")
    parser.add_argument("--workers-per-gpu", type=positive_int, default=4, help="at least 2")
    parser.add_argument("--policies", type=_policies, default=["prism"], metavar="P[,P...]", help=", ".join(POLICIES))
    parser.add_argument("--events", type=positive_int, default=20_000, help="number of timed events per policy")
    parser.add_argument("--json", type=new_file, help="write the figures to this file")
    chosen = parser.parse_args()
    if chosen.gpus > MOST_GPUS:
        parser.error(f"--gpus: expected at most {MOST_GPUS}")
    if chosen.workers_per_gpu < 2:
        parser.error("--workers-per-gpu: expected 2 or more: one is left free for what is timed")
    return chosen


def main() -> None:
    chosen = arguments()
    size = {"models": chosen.models, "gpus": chosen.gpus, "workers_per_gpu": chosen.workers_per_gpu}
    figures: dict[str, Figures] = {}
    try:
        for policy in chosen.policies:
            say(f"{policy}: filling the pool and settling, then {chosen.events:,} events")
            figures[policy] = measure(policy, **size, events=chosen.events)
    except KeyboardInterrupt:
        print("bench.decision: stopped early; no figures", file=sys.stderr)
        sys.exit(130)
    if chosen.json:
        found = {"milliseconds": figures, **size, "machine": describe_machine()}
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    print(table(figures))
