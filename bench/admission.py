"""Measures the cost of the admission queue: `python -m bench.admission`.

The queue is kept at a given length: each round adds a request, asks which is first, and removes that one as if it were
served. Service times deviate from the estimated costs by up to a fifth, so that plans become outdated as they do in
practice. There are three states:

    met          every deadline can be met
    overloaded   half of the deadlines cannot be met
    levels       overloaded with three priorities, the upper two of which are overloaded already, so that complete
                 plans have to be made

Times are per operation, in microseconds of this process's CPU time; `round` is the sum over a round, the cost of one
admission.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from bench.machine import describe_machine
from scheduler.dispatch.moore_hodgson import AdmissionQueue
from simulator.command_line import Parser, new_file, positive_int
from simulator.percentiles import spread
from simulator.progress import say_again

LENGTHS = (10, 100, 1_000, 10_000)
LOADS = {"met": 0.5, "overloaded": 2.0, "levels": 2.0}
"""Waiting work, relative to what fits before the last deadline."""
OPERATIONS = ("add", "first", "remove", "round")
GOAL = 100.0
"""Maximum mean of a round, in microseconds, with 1,000 requests in the queue."""


class AdmissionTraffic:
    """Requests of 1 to 19 s, with deadlines that yield the state's load."""

    def __init__(self, state: str, length: int) -> None:
        self._random = Random(length)
        self._levels = 3 if state == "levels" else 1
        self._horizon = 10.0 * length / LOADS[state]
        self._slack = 20.0 if state == "met" else 0.0
        self._costs: dict[int, float] = {}

    def waiting(self, request: int) -> tuple[int, float, float, int]:
        """A request that waits at the start, time 0."""
        return self._made(request, self._random.uniform(0, self._horizon))

    def newcomer(self, request: int, now: float) -> tuple[int, float, float, int]:
        return self._made(request, now + self._horizon * self._random.uniform(0.5, 1))

    def service(self, request: int) -> float:
        """The request's actual service time in seconds."""
        return self._costs.pop(request) * self._random.uniform(0.8, 1.2)

    def _made(self, request: int, deadline: float) -> tuple[int, float, float, int]:
        cost = self._costs[request] = self._random.uniform(1, 19)
        return request, deadline + self._slack, cost, self._random.randrange(self._levels)


def measure(state: str, length: int, rounds: int) -> dict[str, dict[str, float | None]]:
    """Statistics of each operation, in microseconds."""
    traffic, queue = AdmissionTraffic(state, length), AdmissionQueue(patience=1e9)
    for request in range(length):
        queue.add(*traffic.waiting(request))
    queue.first(now := 0.0)
    taken: dict[str, list[float]] = {operation: [] for operation in OPERATIONS}
    for request in range(length, length + rounds):
        arrival = traffic.newcomer(request, now)
        add, _ = _timed(partial(queue.add, *arrival))
        first, served = _timed(partial(queue.first, now))
        remove, _ = _timed(partial(queue.remove, served))
        now += traffic.service(served)
        for operation, figure in zip(OPERATIONS, (add, first, remove, add + first + remove), strict=True):
            taken[operation].append(figure)
    return {operation: {**spread(figures), "max": max(figures)} for operation, figures in taken.items()}


def _timed(operation: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time_ns()
    result = operation()
    return (time.process_time_ns() - began) / 1000, result


def table(figures: dict[str, dict[int, dict[str, dict[str, float | None]]]]) -> str:
    lines = [f"{'state':10} {'queued':>6}" + "".join(f" {operation:>21}" for operation in OPERATIONS)]
    lines.append(f"{'':17}" + f" {'mean':>6} {'median':>6} {'worst':>7}" * len(OPERATIONS) + "   microseconds")
    for state, lengths in figures.items():
        for length, found in lengths.items():
            cells = [f" {found[of]['mean']:6.1f} {found[of]['p50']:6.1f} {found[of]['max']:7.0f}" for of in OPERATIONS]
            lines.append(f"{state:10} {length:6d}{''.join(cells)}")
    for state, lengths in figures.items():
        if mean := lengths[1_000]["round"]["mean"]:
            reached = "reached" if mean <= GOAL else "MISSED"
            lines.append(f"goal: {state}, 1,000 queued, mean of a round at most {GOAL:.0f} us: {reached}")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = Parser(prog="bench.admission", description="Measures the cost of the admission queue per request.")
    parser.add_argument("--rounds", type=positive_int, default=2000, help="at each length")
    parser.add_argument("--json", type=new_file, help="write the figures to this file")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    figures: dict[str, dict[int, dict[str, dict[str, float | None]]]] = {state: {} for state in LOADS}
    try:
        for state in LOADS:
            for length in LENGTHS:
                say_again(f"{state}, {length:,} queued")
                figures[state][length] = measure(state, length, chosen.rounds)
    except KeyboardInterrupt:
        print("bench.admission: stopped early; no figures", file=sys.stderr)
        sys.exit(130)
    if chosen.json:
        chosen.json.write_text(json.dumps({"microseconds": figures, "machine": describe_machine()}, indent=2) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
