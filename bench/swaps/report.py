"""The reports of `bench.swaps`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from bench.load.report import table, warnings

MIB = 2**20


def write_report(chosen: argparse.Namespace, figures: Mapping[str, Any]) -> str:
    """Write the JSON file if requested; returns the text tables."""
    if chosen.json is not None:
        content = {"arguments": vars(chosen), **figures}
        chosen.json.write_text(json.dumps(content, indent=2, default=str) + "\n")
    said = [table(figures["load"]), *warnings(figures["load"]), waits(figures["waited"]), outcome(figures)]
    return "\n" + "\n\n".join(said)


def waits(waited: Mapping[str, Mapping[str, Any]]) -> str:
    """A text table with one line per model and state; times in seconds."""
    if not waited:
        return "no request waited for an activation"
    width = max(map(len, waited))
    lines = [f"{'waited for':<{width}}  {'from':<12}{'requests':>9}{'p50':>9}{'p95':>9}   first token, s"]
    for model, by_state in sorted(waited.items(), key=lambda item: (item[0] == "all", item[0])):
        for state, group in sorted(by_state.items()):
            times = "".join(f"{group[rank]:9.3f}" for rank in ("p50", "p95"))
            lines.append(f"{model:<{width}}  {state:<12}{group['requests']:9d}{times}")
    return "\n".join(lines)


def outcome(figures: Mapping[str, Any]) -> str:
    load = figures["load"]
    attained = load["all"]["attainment"]["ttft"]
    lost = figures["device_lost_mib"]
    lines = [
        f"{figures['swaps']} activations, {figures['evictions']} evictions, {figures['worker_deaths']} workers died",
        f"{load['all']['requests']} requests, {load['all']['failed']} failed, "
        f"{load['all']['requests'] / load['took_s']:.2f}/s; first token within its SLO: "
        + ("-" if attained is None else f"{100 * attained:.1f}%"),
        f"at rest: host memory {_mib(figures['at_rest_before']['host'])}, then "
        f"{_mib(figures['at_rest_after']['host'])} ({figures['host_grown_percent']:+.2f}%); "
        + ("no device memory to watch" if lost is None else f"device memory {lost:+.0f} MiB"),
    ]
    if figures["teardowns"]["count"]:
        took = figures["teardowns"]["seconds"]
        lines.append(f"{figures['teardowns']['count']} teardowns, p50 {took['p50']:.3f} s, p95 {took['p95']:.3f} s")
    refused = sum(figures["commands_refused"].values())
    return "\n".join([*lines, *([f"{refused} commands came too late for their model's state"] if refused else [])])


def _mib(nbytes: int) -> str:
    return f"{nbytes / MIB:,.0f} MiB"
