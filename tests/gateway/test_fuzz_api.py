"""A part of `make fuzz-api`: every route is asked odd things, of both kinds, and nobody beside notices."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from tests.fuzz_api import BASES, MODEL, fields_of, fuzz, requests
from tests.rig.sglang_models import NEEDS_SGLANG

SEED = 7
SINGLES, MIXED = 60, 60
FIRST_MIXED = 100_000
"""No field is alone so far behind."""


@pytest.mark.parametrize("engine", ["transformers", pytest.param("sglang", marks=[pytest.mark.sglang, NEEDS_SGLANG])])
def test_no_request_ends_a_worker_or_changes_a_stream(demo_folder: Path, short_path: Path, engine: str) -> None:
    todo = chain(requests(SEED, 0, SINGLES), requests(SEED, FIRST_MIXED, MIXED))
    found = fuzz(engine, demo_folder / MODEL, short_path, todo)
    assert found.problems == []
    assert sum(found.statuses.values()) == SINGLES + MIXED
    assert found.streams > 0


def test_each_field_of_each_route_comes_by_itself() -> None:
    assert all(fields_of(path) for path in BASES)
    assert "sampling_params.top_k" in fields_of("/generate")


def test_a_run_goes_on_where_another_was_cut_off() -> None:
    whole = list(requests(SEED, 0, 60))
    assert whole == [*requests(SEED, 0, 25), *requests(SEED, 25, 35)]
    assert [number for number, _, _ in whole] == list(range(60))
