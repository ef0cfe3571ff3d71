"""Reports the results of `bench.activation`: rows, goals, a table, JSON and Markdown."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.activation.goals import judge
from bench.activation.replacement import Replacement
from bench.activation.rounds import ActivationRound, Eviction
from bench.machine import describe_machine, in_words, versions
from config.units import format_size
from simulator.percentiles import percentile

Row = dict[str, Any]
"""Medians over all rounds of one model in one state; times in seconds, None if not measured."""


STOPPED_EARLY = "Stopped before its end: what is missing here was not reached."


@dataclass
class ActivationFigures:
    rounds: list[ActivationRound] = field(default_factory=list)
    link: dict[str, Any] = field(default_factory=dict)
    """Rate in GB/s, and the endpoints."""
    blank_bytes: int | None = None
    """Device memory of a blank worker."""
    parked_bytes: dict[str, int] = field(default_factory=dict)
    """Device memory of a worker with the model parked, in bytes."""
    full_eviction: Eviction | None = None
    full_bytes: int = 0
    """Bytes of KV cache mapped at the full eviction."""
    decode: dict[int, float] = field(default_factory=dict)
    """Tokens per second by number of concurrent streams."""
    stock_decode: dict[int, float] = field(default_factory=dict)
    """The same for SGLang's own server."""
    ttft: dict[int, float] = field(default_factory=dict)
    """TTFT of an active model in seconds, by prompt length in tokens."""
    stock_ttft: dict[int, float] = field(default_factory=dict)
    """The same for SGLang's own server."""
    neighbour: dict[str, Any] | None = None
    """Result of `beside_copies`."""
    idle: dict[str, float] = field(default_factory=dict)
    """CPU use as a share of a core, by worker state."""
    replacements: list[Replacement] = field(default_factory=list)
    stopped: bool = False
    """Whether the run was stopped early."""


def write_report(chosen: argparse.Namespace, measured: ActivationFigures) -> str:
    """Write the requested files; returns the text table. Raises: OSError."""
    swaps = json.loads(chosen.swaps.read_text()) if chosen.swaps else None
    real = chosen.engine == "sglang" and chosen.device != "cpu" and not chosen.tiny
    figures = summarize(measured, swaps, chosen.note, real=real)
    if chosen.out is not None:
        from bench.activation.chart import draw

        given = {name: value for name, value in vars(chosen).items() if name not in ("note", "folder")}
        _write(chosen.out, ".json", json.dumps({**figures, "arguments": given}, indent=2, default=str) + "\n")
        _write(chosen.out, ".md", markdown(figures, command_of(chosen)))
        draw(chosen.out.with_name(chosen.out.name + ".png"), figures)
    parts = [table(figures["rows"]), goal_table(figures["goals"]), *([STOPPED_EARLY] if measured.stopped else [])]
    return "\n" + "\n\n".join(parts)


def _write(prefix: Path, suffix: str, content: str) -> None:
    prefix.with_name(prefix.name + suffix).write_text(content)


def command_of(chosen: argparse.Namespace) -> str:
    """The command line to repeat the run elsewhere: without file names, and with the decisive defaults spelt out."""
    parts = [f"--models {','.join(chosen.models)}", f"--states {','.join(chosen.states)}", f"--rounds {chosen.rounds}"]
    parts += [f"--device {chosen.device}", f"--engine {chosen.engine}", f"--workers {chosen.workers}"]
    parts += [f"--set {key}={value}" for key, value in chosen.set]
    parts += [f"--fill-kv {format_size(chosen.fill_kv).replace(' ', '')}"] if chosen.fill_kv else []
    parts += [f"--cold-models {','.join(chosen.cold_models)}"] if chosen.cold_models else []
    flags = [f"--{name}" for name in ("tiny", "dummy", "decode", "neighbour", "idle", "kill") if getattr(chosen, name)]
    return " ".join(["python -m bench.activation", *flags, *parts])


def summarize(measured: ActivationFigures, swaps: Mapping[str, Any] | None, note: str, *, real: bool) -> dict[str, Any]:
    """All figures of the run. `swaps` is the result of `bench.swaps`, if it ran.

    Goals are judged only in a `real` run, with full-size models on a GPU.
    """
    link = measured.link["gbps"]
    groups: dict[tuple[str, str], list[ActivationRound]] = {}
    for taken in measured.rounds:
        groups.setdefault((taken.model, taken.state), []).append(taken)
    full = measured.full_eviction
    figures = {
        "rows": [_row(rounds, link) for rounds in groups.values()],
        "link": measured.link,
        "blank_worker_bytes": measured.blank_bytes,
        "parked_worker_bytes": measured.parked_bytes,
        "full_eviction": {"kv_bytes": measured.full_bytes, "evict_s": full.freed} if full is not None else None,
        "decode_tokens_per_s": measured.decode,
        "stock_decode_tokens_per_s": measured.stock_decode,
        "ttft_s": measured.ttft,
        "stock_ttft_s": measured.stock_ttft,
        "neighbour": measured.neighbour,
        "idle_core_share": measured.idle,
        "replacements_s": [found._asdict() for found in measured.replacements],
        "machine": describe_machine(),
        "versions": versions(),
        "stopped": measured.stopped,
        "note": note,
    }
    return {**figures, "goals": judge(figures, swaps, real=real)}


def _row(rounds: Sequence[ActivationRound], link: float) -> Row:
    first = rounds[0]
    copy = _median([taken.copy_gbps for taken in rounds])
    names = dict.fromkeys(name for taken in rounds for name in taken.phases)
    return {
        "model": first.model,
        "bytes": first.nbytes,
        "state": first.state,
        "rounds": len(rounds),
        "weights_s": _median([taken.weights for taken in rounds]),
        "ready_s": _median([taken.ready for taken in rounds]),
        "first_token_s": _median([taken.first_token for taken in rounds]),
        "first_token_max_s": max(taken.first_token for taken in rounds),
        "evict_s": _median([taken.evict for taken in rounds]),
        "evict_answer_s": _median([taken.evict_answer for taken in rounds]),
        "copy_gbps": copy,
        "link_gbps": link,
        "link_share": copy / link if copy is not None else None,
        "prompt_tokens": _median([taken.prompt_tokens for taken in rounds]),
        "phases_s": {name: _median([taken.phases.get(name) for taken in rounds]) for name in names},
    }


def _median(values: Sequence[float | None]) -> float | None:
    return percentile([value for value in values if value is not None], 50)


# --- for people -----------------------------------------------------------------------------------------------

COLUMNS = ("model", "GB", "state", "rounds", "weights", "ready", "first token", "(max)", "evict", "GB/s", "of link")


def cells(row: Row) -> list[str]:
    times = [seconds(row[key]) for key in ("weights_s", "ready_s", "first_token_s", "first_token_max_s", "evict_s")]
    rate = "-" if row["copy_gbps"] is None else f"{row['copy_gbps']:.1f}"
    share = "-" if row["link_share"] is None else f"{100 * row['link_share']:.0f}%"
    return [row["model"], f"{row['bytes'] / 1e9:.3g}", row["state"], str(row["rounds"]), *times, rate, share]


def seconds(value: float | None) -> str:
    """Formats seconds to the millisecond, or to three digits if that is more."""
    return "-" if value is None else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def table(rows: Sequence[Row]) -> str:
    """A text table with one line per model and state; times in seconds."""
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def goal_table(goals: Sequence[Mapping[str, Any]]) -> str:
    width = max(len(goal["name"]) for goal in goals)
    return "\n".join(f"{goal['name']:<{width}}  {goal['text']:<24} {_verdict(goal)}" for goal in goals)


def _verdict(goal: Mapping[str, Any]) -> str:
    note = f" ({goal['note']})" if goal["note"] else ""
    if goal["measured"] is None:
        return f"not measured{note}"
    judged = {True: "reached", False: "MISSED", None: "not judged: no whole models on a GPU"}[goal["met"]]
    return f"{goal['measured']:.4g} {goal['unit']}".rstrip() + f"{note}, {judged}"


def markdown(figures: Mapping[str, Any], how: str) -> str:
    """The report in the form used in docs/results."""
    link = figures["link"]
    lines = [
        "# From a request to the first token of a model that is not active",
        "",
        f"`{how}`. {in_words(figures['machine'], figures['versions'])}",
        "",
        "Models of real shapes with random weights, one streamed chat of 256 tokens at a time. "
        f"Link: {link['gbps']:.1f} GB/s ({link['what']}). "
        "Times are medians in seconds from sending the request, as its client sees them; "
        "`evict` is from the command until the memory is free." + (f" {STOPPED_EARLY}" if figures["stopped"] else ""),
        "",
        *_rows(("figure", "goal", "measured"), [[g["name"], g["text"], _verdict(g)] for g in figures["goals"]]),
    ]
    if beside := _beside(figures):
        lines += ["", *_rows(("beside these", "measured"), beside)]
    if figures["note"]:
        lines += ["", figures["note"]]
    lines += ["", *_rows(COLUMNS, [cells(row) for row in figures["rows"]])]
    phases = [[row["model"], row["state"], _phases(row)] for row in figures["rows"]]
    lines += ["", "What the first token waited for, in order:", "", *_rows(("model", "state", "phases, ms"), phases)]
    return "\n".join(lines) + "\n"


def _beside(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Further figures, for which there are no goals."""
    found = []
    for tokens, took in figures["ttft_s"].items():
        stock = figures["stock_ttft_s"].get(tokens)
        than = "" if stock is None else f", SGLang's own server {1000 * stock:.0f} ms"
        found.append((f"first token of an active model, prompt of {tokens} tokens", f"{1000 * took:.0f} ms{than}"))
    if it := figures["neighbour"]:
        tpot = f"TPOT {1000 * it['tpot_beside_s']:.2f} ms, {1000 * it['tpot_s']:.2f} ms without"
        gap = f"longest gap {1000 * it['longest_gap_beside_s']:.0f} ms, {1000 * it['longest_gap_s']:.0f} ms without"
        found.append((f"{it['model']} while {it['copied']} is copied, {it['copies']} times", f"{tpot}; {gap}"))
    for state, share in figures["idle_core_share"].items():
        found.append((f"of a core, a worker that is {state} and has nothing to do", f"{100 * share:.1f}%"))
    return found


def _phases(row: Row) -> str:
    return ", ".join(f"{name} {1000 * took:.0f}" for name, took in row["phases_s"].items())


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
