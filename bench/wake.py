"""Measures how long a request waits for an inactive model: `python -m bench.wake`.

It serves three tiny models on two CPU workers (real architectures, real weights in shared memory) and repeatedly sends
a streamed chat to one of them, each time in the same state:

    active    the model is active, for comparison
    parked    evicted, and its worker has kept the skeleton
    other     evicted, and its worker has served another model since, so the skeleton must be rebuilt
    disk      a new gateway, so the weights are not in host memory either

Times are from sending the request to the first token, in seconds in the JSON file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.subjects.gateway_under_test import GatewayUnderTest, serving
from gateway.demo_models import NAMES, make_demo_models
from simulator.command_line import Parser, new_file
from simulator.errors import StudyError
from simulator.percentiles import spread
from simulator.progress import say, say_again

GOAL_PARKED = 0.050
"""Maximum median TTFT of a parked tiny model, in seconds."""
START_TIMEOUT = 120.0
STATES = ("active", "parked", "other", "disk")
PROMPT = "Are you awake?"
TOKENS = 4


def registry(models: Path) -> dict[str, Any]:
    entries = [{"name": model, "path": str(models / model)} for model in NAMES]
    return {"scheduler": {"policy": "lru"}, "models": entries}


async def first_token(subject: GatewayUnderTest, model: str) -> float:
    """Seconds from sending a chat to its first token; the answer is read to its end."""
    outcome = await subject.ask(model, PROMPT, TOKENS)
    assert outcome.first_token is not None
    return outcome.first_token


async def from_active(subject: GatewayUnderTest, model: str) -> float:
    await first_token(subject, model)
    return await first_token(subject, model)


async def from_parked(subject: GatewayUnderTest, model: str) -> float:
    await first_token(subject, model)
    await subject.evict(model)
    return await first_token(subject, model)


async def from_other(subject: GatewayUnderTest, model: str) -> float:
    """Measure after the two other models were served last, so that both workers hold their skeletons."""
    await subject.evict(model)
    for other in NAMES:
        if other != model:
            await first_token(subject, other)
    return await first_token(subject, model)


async def measure(models: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure all states."""
    ways: dict[str, Callable[[GatewayUnderTest, str], Any]] = {
        "active": from_active,
        "parked": from_parked,
        "other": from_other,
    }
    seconds: dict[str, list[float]] = {state: [] for state in STATES}
    async with serving(registry(models), START_TIMEOUT) as subject:
        for model in NAMES:
            await first_token(subject, model)
        for turn in range(rounds):
            say_again(f"round {turn + 1} of {rounds}")
            for state, way in ways.items():
                seconds[state].append(await way(subject, NAMES[turn % len(NAMES)]))
    for turn in range(max(1, rounds // 10)):
        say_again(f"from disk, {turn + 1} of {max(1, rounds // 10)}")
        async with serving(registry(models), START_TIMEOUT) as subject:
            seconds["disk"].append(await first_token(subject, NAMES[turn % len(NAMES)]))
    return {state: {"rounds": len(taken), **spread(taken), "max": max(taken)} for state, taken in seconds.items()}


def table(figures: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'state':8} {'rounds':>6} {'p50':>10} {'p95':>10} {'max':>10}   request to first token"]
    for state, figure in figures.items():
        times = "".join(f" {1000 * figure[key]:7.1f} ms" for key in ("p50", "p95", "max"))
        lines.append(f"{state:8} {figure['rounds']:6d}{times}")
    reached = "reached" if figures["parked"]["p50"] <= GOAL_PARKED else "MISSED"
    lines.append(f"goal: parked, median at most {1000 * GOAL_PARKED:.0f} ms: {reached}")
    return "\n".join(lines)


async def command(chosen: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="prism-wake-models-") as models:
        try:
            await asyncio.to_thread(make_demo_models, Path(models), say)
            figures = await measure(Path(models), chosen.rounds)
        except StudyError as error:
            print(f"bench.wake: {error}", file=sys.stderr)
            return 1
    if chosen.json:
        machine = {"python": platform.python_version(), "platform": platform.platform()}
        chosen.json.write_text(json.dumps({"first_token_s": figures, "machine": machine}, indent=2) + "\n")
    print(table(figures))
    return 0


def main() -> None:
    parser = Parser(prog="bench.wake", description="Time from a request for an inactive model to its first token.")
    parser.add_argument("--rounds", type=int, default=30, help="rounds per state; disk gets a tenth of them")
    parser.add_argument("--json", type=new_file, help="write the figures to this file")
    try:
        sys.exit(asyncio.run(command(parser.parse_args())))
    except KeyboardInterrupt:
        print("bench.wake: stopped early; no figures", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
