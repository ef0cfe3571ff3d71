"""A rank's process group needs no network: alone it listens nowhere, two meet on loopback (`programs/group.py`)."""

from __future__ import annotations

import json

import pytest

from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]


def test_a_group_of_one_has_what_it_gives_and_listens_nowhere(print_of: PrintOf) -> None:
    assert json.loads(print_of("group", "1")) == [[1.0, [{"rank": 0}], "gloo", []]]


def test_a_group_of_two_meets_on_loopback(print_of: PrintOf) -> None:
    assert json.loads(print_of("group", "2")) == [[3.0, [{"rank": 0}, {"rank": 1}], "gloo", ["127.0.0.1"]]] * 2
