"""What a calibration run has found, as JSON and as a page in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from bench.calibration.fit import Fits, LeastSquaresFit, by_load
from bench.calibration.measurements import Measurements, Member, Together
from bench.calibration.tables import ms, percent, table, times
from bench.calibration.worker_fit import WorkerFits
from bench.calibration.worker_page import WorkerPage
from bench.machine import in_words
from simulator.errors import StudyError

PREFILL = (
    "a step takes as long as launching its kernels (so much a layer), or as its arithmetic (linear layers and "
    "attention, each at a rate), whichever is longer."
)
DECODE = (
    "a step takes so much for each layer, and for each request; reading weights (the input embedding is not read) at a "
    "rate; and attention, which is reading the KV cache at a rate, or its longest context at another, whichever is "
    "longer."
)


def write_measurements(path: Path, measured: Measurements, fits: Fits | None = None) -> None:
    """Raises: StudyError."""
    content = msgspec.to_builtins(measured)
    if fits is not None:
        content["fits"] = {
            "prefill": _fit(fits.prefill),
            "decode": _fit(fits.decode),
            "per_neighbour": fits.per_neighbour,
        }
    _write(path, json.dumps(content, indent=1) + "\n")


def write_page(path: Path, measured: Measurements, fits: Fits, workers: WorkerFits) -> None:
    """Raises: StudyError."""
    _write(path, markdown(measured, fits, workers))


def _write(path: Path, content: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error.strerror}") from error


def _fit(found: LeastSquaresFit) -> dict[str, Any]:
    points = [{**asdict(point), "error": point.error} for point in found.points]
    return {"terms": found.terms, "mean_error": found.mean_error, "points": points}


# --- the page -------------------------------------------------------------------------------------------------


def markdown(measured: Measurements, fits: Fits, workers: WorkerFits) -> str:
    lines = [
        "# What steps cost on this GPU, and how much engines slow each other",
        "",
        "`python -m bench.calibration`: SGLang's own engine, not modified, with a static KV cache, no prefix cache, "
        f"decode graphs and prefill steps of {measured.chunk} tokens. {in_words(measured.machine, measured.versions)} "
        "Random weights, medians.",
    ]
    lines += ["", "## Prefill", "", *_prefill(measured, fits), *_terms(fits.prefill, PREFILL)]
    lines += ["", "## Decode", "", *_decode(measured, fits), *_terms(fits.decode, DECODE)]
    lines += ["", "## Two at once", "", *_pairs(measured, fits)]
    lines += ["", "## Three and four at once", "", *_groups(measured.groups, fits.per_neighbour)]
    lines += WorkerPage(measured, workers).sections()
    return "\n".join(lines) + "\n"


def _prefill(measured: Measurements, fits: Fits) -> list[str]:
    rows = [
        [it.model, str(it.tokens), ms(min(it.seconds)), ms(it.median), ms(at.fitted), percent(at.error)]
        for it, at in zip(measured.prefill, fits.prefill.points, strict=True)
    ]
    return table(("model", "tokens", "best, ms", "median, ms", "fitted, ms", "off by"), rows)


def _decode(measured: Measurements, fits: Fits) -> list[str]:
    rows = [
        [
            *(it.model, str(it.batch), str(it.prompt), ms(min(it.steps)), ms(it.median)),
            *(ms(at.fitted), percent(at.error), f"{it.batch / it.median:,.0f}"),
        ]
        for it, at in zip(measured.decode, fits.decode.points[: len(measured.decode)], strict=True)
    ]
    header = ("model", "batch", "prompts of", "best step, ms", "median, ms", "fitted, ms", "off by", "tokens/s")
    return table(header, rows)


def _terms(found: LeastSquaresFit, formula: str) -> list[str]:
    rows = [[name, f"{value:.4g}"] for name, value in found.terms.items()]
    return ["", f"Fitted: {formula}", "", *table(("term", "value"), rows), "", f"It is {found.quality}."]


def _pairs(measured: Measurements, fits: Fits) -> list[str]:
    loads = [load.name for load in measured.loads]
    slow = by_load(measured.pairs)
    rows = [[own, *(times(slow.get((own, other))) for other in loads)] for own in loads]
    lines = [
        f"On average a step takes 1 + {fits.per_neighbour:.2f} n times as long beside n busy neighbours, over these "
        "and the groups below. Mean slow-down by own load and the other's, over all sizes:",
        "",
        *table(("own load", *(f"beside {load}" for load in loads)), rows),
        "",
        *table(
            ("one", "its slow-down", "rounds", "the other", "its slow-down", "rounds"),
            [[cell for member in pair.members for cell in _member(member)] for pair in measured.pairs],
        ),
    ]
    described = ", ".join(
        f"{load.name}: {load.batch} x {load.prompt} + {load.tokens} tokens" for load in measured.loads
    )
    return [f"Rounds of {described}.", "", *lines]


def _member(member: Member) -> list[str]:
    return [f"{member.model} {member.load}", times(member.slowdown), str(len(member.seconds))]


def _groups(groups: Sequence[Together], each: float) -> list[str]:
    rows = []
    for group in groups:
        for place, member in enumerate(group.members):
            rows.append(["" if place else str(len(group.members)), *_member(member)])
        rows[-len(group.members)].append(times(1 + each * (len(group.members) - 1)))
    width = 5
    padded = [row + [""] * (width - len(row)) for row in rows]
    return table(("at once", "engine", "its slow-down", "rounds", "by that"), padded)
