"""Decode graphs are captured when they are wanted, and not before a model serves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]


@pytest.fixture(scope="module")
def report(print_of: PrintOf) -> Any:
    return json.loads(print_of("graphs"))


def test_none_is_captured_before_the_model_serves(report: Any) -> None:
    assert report["at_first"] == []


def test_a_step_finds_the_graph_of_its_size_and_captures_no_other(report: Any) -> None:
    assert report["for_three"] == [[4]]
    assert report["for_four"] == []


def test_an_idle_rank_captures_the_rest_one_by_one(report: Any) -> None:
    assert report["idle"] == [[1], [2], [8]]
    assert report["sizes"] == [1, 2, 4, 8]


def test_a_capture_that_fails_is_still_to_be_made(report: Any) -> None:
    assert report["after_failure"] == [1, 2, 8]


def test_it_is_known_before_a_step_whether_it_will_wait_for_a_graph(report: Any) -> None:
    assert report["lacks"] == {
        "nobody": False,
        "prefill of 2": False,
        "decode of 3": True,
        "decode of 9": False,
        "decode of 4, afterwards": False,
    }


def test_a_first_token_is_sent_before_the_graph_of_the_next_step_is_captured(report: Any) -> None:
    assert report["sent_first"] == {"nothing": False, "a first token": True}


def test_a_capture_writes_to_the_padding_slot_and_to_no_request(report: Any) -> None:
    assert report["written"] == [0]
    assert report["lengths"] == [1]
