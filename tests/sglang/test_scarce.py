"""KV memory runs short in an SGLang rank: requests wait, go back to wait, or are refused, and the rank lives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf
from tests.sglang.programs.scarce import SCENARIOS

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]


@pytest.fixture(scope="module")
def reports(print_of: PrintOf, sglang_models: dict[str, Path]) -> Any:
    """A `Report` of tests/sglang/programs/scarce.py for each scenario."""
    return json.loads(print_of("scarce", str(sglang_models["llama-tiny"])).splitlines()[-1])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_rank_lives_and_comes_to_rest(reports: Any, scenario: str) -> None:
    assert reports[scenario]["same_rank"]


@pytest.mark.parametrize("scenario", ["misses", "misses between the pieces of a prompt"])
def test_allocations_that_miss_change_no_answer(reports: Any, scenario: str) -> None:
    assert set(reports[scenario]["statuses"]) == {200}
    assert reports[scenario]["texts"] == reports["undisturbed"]["texts"]


def test_a_prompt_above_the_limit_waits_until_it_is_raised(reports: Any) -> None:
    report = reports["limit below a prompt"]
    assert report["waited"]
    assert report["texts"] == reports["undisturbed"]["texts"]


def test_a_rank_in_which_nothing_fits_does_not_spin(reports: Any) -> None:
    assert reports["limit below a prompt"]["cpu_share"] < 0.3


def test_an_answer_that_outgrows_the_limit_goes_on_when_it_is_raised(reports: Any) -> None:
    report = reports["limit below an answer"]
    assert report["waited"]
    assert report["texts"] == reports["long answers"]["texts"]


def test_who_never_fits_is_told_so_and_those_behind_are_served(reports: Any) -> None:
    report = reports["limit stays"]
    assert report["statuses"] == [503, 503, 200]
    whole, streamed, _ = report["texts"]
    assert "does not fit" in whole
    assert "does not fit" in streamed


def test_a_prompt_that_no_limit_could_hold_is_a_400(reports: Any) -> None:
    report = reports["no device is large enough"]
    assert report["statuses"][0] == 400
    assert "longer than this worker can take" in report["texts"][-1]
    assert report["texts"][:-1] == reports["undisturbed"]["texts"][:-1]
