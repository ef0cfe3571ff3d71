"""Writes the report of a comparison: measured and simulated figures of every run, and their differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from bench.evaluation.real.results import Results
from bench.machine import in_words

Row = dict[str, Any]
SETTING = ("device_memory_gib", "mps", "trace", "rate_scale")
"""The settings shared by the rows of one table line, besides the policy."""


def write_page(results: Results) -> None:
    results.page.write_text("\n".join(_page(results)) + "\n")


def _page(results: Results) -> Iterable[str]:
    about = results.about
    yield "# Policies on GPUs, measured and simulated"
    yield ""
    yield f"{about['date']}, on {in_words(about['machine'], about['versions'])}"
    yield f"Engine `{about['engine']}`, {about['workers_per_device']} workers on each device. Of each trace, the first"
    yield f"{about['warm_up_s']:g} s warm up, and the {about['judged_s']:g} s after them are judged; a request that"
    yield "failed has missed both objectives. Every model was warm in every process. Simulated: the same trace,"
    yield f"registry and objectives, with the calibration of {about['calibration']}."
    yield ""
    yield "```"
    yield from about["commands"]
    yield "```"
    yield ""
    yield "Made by that command; what is in it by hand is lost."
    yield from _section("Shares of requests within their objectives", _shares(results.rows))
    yield from _section("How far the simulator is off", _errors(results.rows))
    yield from _section("Models", _models(results))
    yield from _section("Failures", _failures(results))


def _section(title: str, lines: Iterable[str]) -> Iterable[str]:
    yield from ("", f"## {title}", "")
    yield from lines


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield "| " + " | ".join(header) + " |"
    yield "| " + " | ".join("---" for _ in header) + " |"
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def _shares(rows: Sequence[Row]) -> Iterable[str]:
    """A line for each setting, with all repetitions: measured, then simulated."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((*(row[name] for name in SETTING), row["policy"]), []).append(row)
    yield "In percent, measured / simulated; of several runs, all that were measured."
    yield ""
    yield from _table(
        ("trace", "MPS", "memory", "policy", "requests", "failed", "TTFT", "TPOT", "both", "off, points"),
        (_cells(group) for group in groups.values()),
    )


def _cells(group: Sequence[Row]) -> list[str]:
    row = group[0]
    rate = "" if row["rate_scale"] == 1 else f" x{row['rate_scale']:g}"
    off = [error for it in group if (error := _off(it)) is not None]
    return [
        f"{row['trace']}{rate}",
        "on" if row["mps"] else "off",
        "-" if row["device_memory_gib"] is None else f"{row['device_memory_gib']:g} GiB",
        row["policy"],
        str(row["requests"]),
        ", ".join("-" if it["failed"] is None else str(it["failed"]) for it in group),
        *(_both_sides(group, name) for name in ("ttft", "tpot", "both")),
        ", ".join(f"{error:+.1f}" for error in off) or "-",
    ]


def _both_sides(group: Sequence[Row], name: str) -> str:
    return f"{', '.join(_percent(it[name]) for it in group)} / {_percent(group[0][f'simulated_{name}'])}"


def _off(row: Row) -> float | None:
    """Points by which `both` was simulated too high."""
    if row["both"] is None or row["simulated_both"] is None:
        return None
    return 100 * float(row["simulated_both"] - row["both"])


def _errors(rows: Sequence[Row]) -> Iterable[str]:
    off: dict[str, list[float]] = {}
    for row in rows:
        if (error := _off(row)) is not None:
            off.setdefault(row["policy"], []).append(error)
    whole = [error for errors in off.values() for error in errors]
    if not whole:
        yield "Nothing was measured."
        return
    yield "Simulated less measured, of `both`, in points."
    yield ""
    yield from _table(
        ("policy", "runs", "mean error", "largest", "bias"),
        ([name, *_error_cells(errors)] for name, errors in [*off.items(), ("all", whole)]),
    )


def _error_cells(errors: Sequence[float]) -> list[str]:
    sizes = [abs(error) for error in errors]
    return [str(len(errors)), f"{mean(sizes):.1f}", f"{max(sizes):.1f}", f"{mean(errors):+.1f}"]


def _models(results: Results) -> Iterable[str]:
    yield "Over all runs of a policy, with and without MPS apart; medians are means of the runs' medians."
    yield ""
    groups: dict[tuple[bool, str, str], list[Row]] = {}
    for run in results.runs:
        for name, figures in run["models"].items():
            groups.setdefault((run["mps"], run["policy"], name), []).append(figures)
    header = ("MPS", "policy", "model", "requests", "both", "TTFT p50, ms", "TPOT p50, ms", "simulated / measured TPOT")
    yield from _table(header, (_model_cells(*key, figures) for key, figures in groups.items()))


def _model_cells(mps: bool, policy: str, name: str, figures: Sequence[Row]) -> list[str]:
    def pair(key: str, factor: float) -> str:
        sides = [_mean(it[side] for it in figures) for side in (key, f"simulated_{key}")]
        return " / ".join("-" if side is None else f"{factor * side:.1f}" for side in sides)

    ratios = [
        it["simulated_tpot_p50_s"] / it["tpot_p50_s"]
        for it in figures
        if it["tpot_p50_s"] and it["simulated_tpot_p50_s"]
    ]
    return [
        "on" if mps else "off",
        policy,
        name,
        str(sum(it["requests"] for it in figures)),
        pair("both", 100),
        pair("ttft_p50_s", 1000),
        pair("tpot_p50_s", 1000),
        f"{mean(ratios):.2f}" if ratios else "-",
    ]


def _failures(results: Results) -> Iterable[str]:
    found = [f"- {text.splitlines()[0]}" for text in results.faults]
    for run in results.runs:
        title = f"{run['policy']}, {run['trace']}, MPS {'on' if run['mps'] else 'off'}, run {run['repeat']}"
        found += [f"- {title}: {count} x {kind}" for kind, count in run.get("failures", {}).items()]
        if not run.get("kept_schedule", True):
            found.append(f"- {title}: requests left {1000 * run['late_p99_s']:.0f} ms late (p99)")
        if run.get("workers_replaced"):
            found.append(f"- {title}: {run['workers_replaced']} workers were replaced")
    yield from found or ["None."]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
