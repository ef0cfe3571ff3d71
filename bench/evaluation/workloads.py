"""The traces of the evaluation by name, generated from parameters or cut from recorded ones in a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.evaluation.scenarios import Scenario
from simulator.errors import StudyError
from simulator.traces.drawing import generator
from simulator.traces.readers import read_requests
from simulator.traces.servegen import read_servegen
from simulator.traces.synthetic import Rotating, Steady, Synthetic, Zipf
from simulator.traces.synthetic_text import written
from simulator.traces.trace import Trace, map_models, merged

SERVEGEN = "servegen_m-mid_rates.csv.gz"
SERVEGEN_LENGTHS = "servegen_m-mid_lengths.csv"
PRISM_27 = "prism_27_models.csv.gz"
AZURE = ("azure_conv_2023.csv.gz", "azure_code_2023.csv.gz")

FILES: Mapping[str, tuple[str, ...]] = {
    "servegen": (SERVEGEN, SERVEGEN_LENGTHS),
    "prism-27": (PRISM_27,),
    "azure": AZURE,
}
"""The files that workloads need; workloads not listed need none."""

HOUR = 3600.0
PERIOD = 120.0
"""Seconds during which a pair of models is hot in `rotating`."""
_SHARES, _STARTS, _DEALT = range(3)
"""Purposes of random numbers, each with its own generator."""


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    models: int
    rate: float
    duration: float
    seed: int
    folder: Path | None


def missing(workload: str, folder: Path | None) -> list[str]:
    """The files that the workload needs and the folder lacks."""
    return [name for name in FILES.get(workload, ()) if folder is None or not (folder / name).exists()]


def make(workload: str, scenario: Scenario, names: Sequence[str], seed: int, folder: Path | None) -> tuple[Trace, str]:
    """A trace for the models `names`, and a description of its source.

    The seed also determines the models' ranks of popularity.

    Raises:
        StudyError: a file is invalid.
    """
    wanted = WorkloadRequest(len(names), scenario.rate, scenario.duration, seed, folder)
    trace, words = _MAKERS[workload](wanted)
    dealt = [names[index] for index in generator(seed, _DEALT).permutation(len(names))]
    trace = trace.stored()
    return trace.renamed(map_models(trace, dealt)).stored(), words


def _synthetic(made: Synthetic) -> tuple[Trace, str]:
    return made.trace(), f"`{written(made)}`"


def _zipf(wanted: WorkloadRequest) -> tuple[Trace, str]:
    return _synthetic(Zipf(models=wanted.models, rate=wanted.rate, duration=wanted.duration, seed=wanted.seed))


def _steady(wanted: WorkloadRequest) -> tuple[Trace, str]:
    return _synthetic(Steady(models=wanted.models, rate=wanted.rate, duration=wanted.duration, seed=wanted.seed))


def _rotating(wanted: WorkloadRequest) -> tuple[Trace, str]:
    made = Rotating(models=wanted.models, rate=wanted.rate, duration=wanted.duration, seed=wanted.seed, period=PERIOD)
    return _synthetic(made)


def _servegen(wanted: WorkloadRequest) -> tuple[Trace, str]:
    """ServeGen's clients; each seed takes another part of the two weeks and other clients."""
    rates, lengths = (_folder(wanted) / name for name in (SERVEGEN, SERVEGEN_LENGTHS))
    start = (36 + 31 * wanted.seed) * HOUR

    def read(rate: float | None) -> Trace:
        return read_servegen(
            rates,
            lengths,
            models=wanted.models,
            start=start,
            duration=wanted.duration,
            rate=rate,
            seed=wanted.seed,
        )

    try:
        trace = read(wanted.rate)
    except StudyError:  # the clients' rate is lower, so copies are added
        trace = read(None).at_rate(wanted.rate, wanted.seed)
    return trace, f"ServeGen m-mid, {wanted.models} clients drawn by seed {wanted.seed}, from {start / HOUR:g} h"


def _prism_27(wanted: WorkloadRequest) -> tuple[Trace, str]:
    trace = read_requests(_folder(wanted) / PRISM_27).window(0.0, wanted.duration)
    return trace.at_rate(wanted.rate, wanted.seed), f"Prism's 27 models, dealt by seed {wanted.seed}"


def _azure(wanted: WorkloadRequest) -> tuple[Trace, str]:
    """Each model gets its own part of one of the two hours, at a rate that is a power law of its rank."""
    hours = [read_requests(_folder(wanted) / name) for name in AZURE]
    weights = [1 / (rank + 1) for rank in range(wanted.models)]
    starts = generator(wanted.seed, _STARTS).random(wanted.models)
    parts = []
    for rank, (weight, luck) in enumerate(zip(weights, starts, strict=True)):
        hour = hours[rank % 2]
        part = hour.window(luck * max(0.0, hour.duration - wanted.duration), wanted.duration)
        part = part.renamed(dict.fromkeys(part.models, f"azure-{rank}"))
        parts.append(_at_rate(part, wanted.rate * weight / sum(weights), wanted.seed + rank))
    return merged(parts), f"Azure 2023, conversation and code in turn, parts drawn by seed {wanted.seed}"


def _at_rate(part: Trace, rate: float, seed: int) -> Trace:
    """The part scaled to a rate; a part without requests stays empty."""
    return part.at_rate(rate, seed) if _any(part) else part


def _any(requests: Iterable[object]) -> bool:
    return next(iter(requests), None) is not None


def _folder(wanted: WorkloadRequest) -> Path:
    assert wanted.folder is not None, "the caller has checked for missing files"
    return wanted.folder


_MAKERS: Mapping[str, Callable[[WorkloadRequest], tuple[Trace, str]]] = {
    "zipf": _zipf,
    "steady": _steady,
    "rotating": _rotating,
    "servegen": _servegen,
    "prism-27": _prism_27,
    "azure": _azure,
}
