"""Reads a trace from a CSV file, gzipped or not, in one of two formats:

requests    arrival_s, [model,] prompt_tokens, output_tokens
ServeGen    client, window_start_s, rate_rps, arrival_pattern, param_1, param_2; token lengths in a second file
"""

from __future__ import annotations

from pathlib import Path

from simulator.errors import StudyError
from simulator.traces.csv_rows import CsvRow, columns, read_rows
from simulator.traces.servegen import read_servegen
from simulator.traces.trace import Trace, TraceRequest

REQUEST_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


def read_trace(
    path: Path,
    *,
    start: float = 0.0,
    duration: float | None = None,
    rate: float | None = None,
    models: int | None = None,
    lengths: Path | None = None,
    seed: int = 0,
) -> Trace:
    """Read `duration` seconds of a trace from `start` on, scaled to a mean of `rate` requests per second.

    Defaults: the whole file (an hour of ServeGen's), unscaled. `models` and `lengths` apply to ServeGen's format only:
    how many clients to draw, and the file of token lengths unless it lies next to the rates. `seed` determines
    everything that is drawn.

    Raises:
        StudyError: a file is invalid (with file, line and column), or lacks what was asked for.
    """
    if "rate_rps" in columns(path):
        beside = lengths or lengths_beside(path)
        hour = 3600.0 if duration is None else duration
        return read_servegen(path, beside, models=models, start=start, duration=hour, rate=rate, seed=seed)
    if models is not None or lengths is not None:
        raise StudyError(f"{path}: holds requests; drawing models and giving lengths needs ServeGen's client rates")
    trace = read_requests(path)
    trace = trace.window(start, trace.duration if duration is None else duration)
    return trace if rate is None else trace.at_rate(rate, seed)


def names_models(path: Path) -> bool:
    """Whether a file assigns requests to models, by a column of models or as ServeGen's clients.

    Raises:
        StudyError: it cannot be read.
    """
    return not {"model", "rate_rps"}.isdisjoint(columns(path))


def read_requests(path: Path) -> Trace:
    """Read listed requests, in time order. Without a column of models, the file's name is the model's.

    Raises:
        StudyError: with file, line and column.
    """
    named = "model" in columns(path)
    default = path.name.removesuffix(".gz").removesuffix(".csv")
    requests = [_request(row, None if named else default) for row in read_rows(path, REQUEST_COLUMNS)]
    if not requests:
        raise StudyError(f"{path}: holds no requests")
    return Trace.of(requests)


def lengths_beside(rates: Path) -> Path:
    """The file of lengths that belongs to a file of rates, such as X_lengths.csv to X_rates.csv.gz, gzipped or not."""
    plain = rates.with_name(rates.name.removesuffix(".gz").replace("_rates", "_lengths"))
    packed = plain.with_name(f"{plain.name}.gz")
    return packed if packed.exists() and not plain.exists() else plain


def _request(row: CsvRow, model: str | None) -> TraceRequest:
    return TraceRequest(
        row.seconds("arrival_s"), model or row.text("model"), row.tokens("prompt_tokens"), row.tokens("output_tokens")
    )
