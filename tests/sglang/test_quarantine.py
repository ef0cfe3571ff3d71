"""A request that SGLang raises over ends alone, wherever that is in its loop (`programs/poison.py` plays it)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf
from tests.sglang.programs.poison import NEIGHBOURS, PLACES, Report

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]

NOT_AT_FAULT = {"nowhere", "merging", "company"}
"""Where nobody fails alone."""


@pytest.fixture(scope="module")
def reports(print_of: PrintOf, sglang_models: dict[str, Path]) -> dict[str, Report]:
    found = json.loads(print_of("poison", str(sglang_models["llama-tiny"])))
    return {place: Report(**report) for place, report in found.items()}


@pytest.mark.parametrize("place", [it.__name__ for it in PLACES])
def test_neighbours_of_a_request_that_fails_get_the_tokens_that_they_would_have_had(
    reports: dict[str, Report], place: str
) -> None:
    assert reports[place].neighbours == reports["nowhere"].neighbours
    assert len(reports[place].neighbours) == len(NEIGHBOURS)


@pytest.mark.parametrize("place", [it.__name__ for it in PLACES])
def test_the_rank_lives_and_only_who_fails_alone_gets_an_error(reports: dict[str, Report], place: str) -> None:
    assert reports[place].same_rank
    assert reports[place].poisonous == (200 if place in NOT_AT_FAULT else 500)
