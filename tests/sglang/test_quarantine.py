"""A request that SGLang raises over ends alone, wherever that is in its loop (`programs/poison.py` plays it)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.sglang_models import NEEDS_SGLANG
from tests.sglang.programs.poison import NEIGHBOURS, PLACES, Report

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]

TIMEOUT = 300
NOT_AT_FAULT = {"nowhere", "merging", "company"}
"""Where nobody fails alone."""


@pytest.fixture(scope="module")
def reports(sglang_models: dict[str, Path]) -> dict[str, Report]:
    command = [sys.executable, "-m", "tests.sglang.programs.poison", str(sglang_models["llama-tiny"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr
    return {place: Report(**found) for place, found in json.loads(done.stdout).items()}


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
