"""The text and JSON reports of a load test."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from bench.load.chart import draw
from bench.load.outcomes import ClientSlo, RequestOutcome


def report(
    chosen: argparse.Namespace,
    figures: dict[str, Any],
    outcomes: Sequence[RequestOutcome],
    slos: Mapping[str, ClientSlo],
) -> None:
    print(f"\n{table(figures)}")
    for warning in warnings(figures):
        print(f"\n{warning}")
    if chosen.json:
        given = {name: value for name, value in vars(chosen).items() if name != "api_key"}
        content = {"arguments": given, **figures, "requests": [entry_of(outcome) for outcome in outcomes]}
        chosen.json.write_text(json.dumps(content, indent=2, default=str) + "\n")
    if chosen.png:
        draw(chosen.png, headline(chosen, figures), outcomes, slos, figures)


def entry_of(outcome: RequestOutcome) -> dict[str, Any]:
    """The JSON entry of a request. Times in seconds: `at` counts from the start, the others from `at`."""
    return {
        "at": outcome.arrival.at,
        "model": outcome.arrival.model,
        "prompt_tokens": outcome.arrival.prompt_tokens,
        "prompt_tokens_counted": outcome.prompt_tokens,
        "output_tokens": outcome.arrival.output_tokens,
        "output_tokens_got": outcome.output_tokens,
        "late": outcome.lateness,
        "ttft": outcome.ttft if outcome.completed else None,
        "tpot": outcome.tpot if outcome.completed else None,
        "e2e": outcome.e2e,
        "failure": outcome.error if outcome.ended is not None else "unfinished",
        "worker": outcome.worker,
        "device": outcome.device,
    }


def headline(chosen: argparse.Namespace, figures: Mapping[str, Any]) -> str:
    whole = figures["all"]
    source = chosen.trace.name if chosen.trace else f"{chosen.rate:g} requests/s, CV {chosen.burstiness:g}"
    attained = whole["attainment"]["both"]
    met = "" if attained is None else f" · {100 * attained:.1f}% met both SLOs"
    kept = "" if figures["kept_schedule"] else " · THE CLIENT DID NOT KEEP ITS SCHEDULE"
    return f"{chosen.url} · {source} · {whole['requests']} requests, {whole['failed']} failed{met}{kept}"


COLUMNS = ("requests", "failed", "TTFT p50", "p99 s", "TPOT p50", "p99 s", "E2E p50", "p99 s", "SLO", "good/s")


def table(figures: Mapping[str, Any]) -> str:
    """A text table with one line per model and one for all; times in seconds."""
    groups = {**{name: group for name, group in figures["models"].items() if group["requests"]}, "all": figures["all"]}
    width = max(map(len, groups))
    lines = [" " * width + "".join(f"{column:>10}" for column in COLUMNS)]
    lines += [f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells(group)) for name, group in groups.items()]
    errors = "".join(f"\n{count} x {kind}" for kind, count in figures["all"]["errors"].items())
    return "\n".join(lines) + errors + f"\nTPOT from {figures['tpot_from']}; times from the scheduled arrival"


def cells(group: Mapping[str, Any]) -> list[str]:
    times = [group[key][rank] for key in ("ttft_s", "tpot_s", "e2e_s") for rank in ("p50", "p99")]
    share = group["attainment"]["both"]
    attained = "-" if share is None else f"{100 * share:.1f}%"
    shown = ["-" if seconds is None else f"{seconds:.3f}" for seconds in times]
    return [str(group["requests"]), str(group["failed"]), *shown, attained, f"{group['goodput_rps']:.2f}"]


def warnings(figures: Mapping[str, Any]) -> list[str]:
    found = []
    if figures["unfinished"]:
        found.append(f"stopped early: {figures['unfinished']} requests were in flight and are not counted")
    if not figures["kept_schedule"]:
        late = figures["lateness_s"]["p99"]
        found.append(
            f"!!! THE SCHEDULE WAS NOT KEPT: 1 in 100 requests left {late:.3f} s late or later. "
            "The load was lower than requested; use a lower rate or a less busy machine."
        )
    if figures["all"]["attainment"]["both"] is None:
        found.append("neither the command line nor the server states an SLO, so attainment is unknown")
    return [
        *found,
        *inexact(figures["models"], "prompt_tokens", "prompts"),
        *inexact(figures["models"], "answer_tokens", "answers"),
    ]


def inexact(models: Mapping[str, Any], key: str, what: str) -> list[str]:
    """A warning for each model whose lengths deviated from the requested ones."""
    found = []
    for name, group in models.items():
        lengths = group[key]
        if lengths["exact"] is not None and lengths["exact"] < 1:
            found.append(
                f"{name}: {what} had {lengths['off_mean']:+.1f} tokens more than asked for in the mean, at most "
                f"{lengths['off_most']:+d}; {100 * lengths['exact']:.1f}% were exact"
            )
        elif group["completed"] and lengths["exact"] is None:
            found.append(f"{name}: the server does not say how many tokens its {what} had")
    return found
