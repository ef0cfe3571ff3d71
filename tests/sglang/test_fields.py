"""Somebody has looked at each field of SGLang's requests, and said whether clients may use it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enginepool.engines.sglang.front.fields import PASSED_OVER, ROUTES, SAMPLING, Fields
from enginepool.openai.routes import INFERENCE_ROUTES
from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf

LISTED = {**ROUTES, "sampling_params": SAMPLING}


@pytest.fixture(scope="module")
def installed(print_of: PrintOf) -> Any:
    """The fields of each class."""
    return json.loads(print_of("fields", *(it.kind for it in LISTED.values())))


def test_every_route_has_a_list() -> None:
    assert set(ROUTES) == INFERENCE_ROUTES


@pytest.mark.parametrize("route", LISTED)
def test_no_field_is_served_and_refused(route: str) -> None:
    assert not LISTED[route].served & LISTED[route].refused


@pytest.mark.sglang
@NEEDS_SGLANG
@pytest.mark.parametrize("route", LISTED)
def test_a_field_that_sglang_has_newly_is_on_no_list_yet(installed: Any, route: str) -> None:
    assert set(installed[LISTED[route].kind]) - LISTED[route].known == set()


@pytest.mark.sglang
@NEEDS_SGLANG
@pytest.mark.parametrize("route", LISTED)
def test_a_field_that_sglang_has_no_more_is_on_no_list(installed: Any, route: str) -> None:
    fields: Fields = LISTED[route]
    gone = fields.known - PASSED_OVER - set(installed[fields.kind])
    assert gone <= {"model"}  # which the gateway wants everywhere
