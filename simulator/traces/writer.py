"""Writes a trace as a CSV file of requests that `readers` can read, gzipped if its name ends in .gz."""

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
    """Write all requests; returns their number. The same trace yields the same bytes; times have microseconds.

    Models without requests do not appear in the file.

    Raises:
        StudyError: the file cannot be written.
    """
    try:
        with path.open("wb") as raw:
            if path.suffix != ".gz":
                return _write(trace, TextIOWrapper(raw, newline=""))
            # No name and time in gzip's header, so that the bytes do not depend on them.
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
