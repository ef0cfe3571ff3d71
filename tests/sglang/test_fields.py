"""Somebody has looked at each field of SGLang's requests, and said whether clients may use it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from enginepool.engines.sglang.front.fields import PASSED_OVER, ROUTES, SAMPLING, Fields
from enginepool.openai.routes import INFERENCE_ROUTES
from tests.rig.sglang_models import NEEDS_SGLANG

LISTED = {**ROUTES, "sampling_params": SAMPLING}
_FIELDS = """
import dataclasses, importlib, json, sys
from enginepool.engines.sglang import warm
warm(gpu=False)
found = {}
for kind in sys.argv[1:]:
    module, name = kind.split(":")
    cls = getattr(importlib.import_module(module), name)
    names = getattr(cls, "model_fields", None) or getattr(cls, "__struct_fields__", None)
    found[kind] = list(names or [field.name for field in dataclasses.fields(cls)])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def installed() -> Any:
    """The fields of each class, told by a process of its own: importing SGLang here would adapt it for all tests."""
    command = [sys.executable, "-c", _FIELDS, *(it.kind for it in LISTED.values())]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


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
