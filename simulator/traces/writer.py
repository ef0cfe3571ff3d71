"""Writes a trace as a CSV file of requests, gzipped where the name ends in .gz: what `readers` reads."""

from __future__ import annotations

import csv
from gzip import GzipFile
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from simulator.errors import StudyError
from simulator.traces.trace import Trace

COLUMNS = ("arrival_s", "model", "prompt_tokens", "output_tokens")


def write_requests(trace: Trace, path: Path) -> int:
    """How many requests it wrote. The same trace makes the same bytes; times are cut to microseconds.

    Models without a request are not in the file.

    Raises:
        StudyError: it cannot be written.
    """
    try:
        with path.open("wb") as raw:
            if path.suffix != ".gz":
                return _write(trace, TextIOWrapper(raw, newline=""))
            # neither a name nor a time in its header, which would differ
            return _write(trace, TextIOWrapper(GzipFile("", "wb", fileobj=raw, mtime=0), newline=""))
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error}") from error


def _write(trace: Trace, file: TextIO) -> int:
    requests = 0
    with file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for request in trace:
            requests += 1
            rows.writerow((f"{request.at:.6f}", request.model, request.prompt_tokens, request.output_tokens))
    return requests
