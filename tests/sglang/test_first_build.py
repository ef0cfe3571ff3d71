"""A worker's first model is built as quickly as later ones: what that needs once is done while the worker is blank."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]


def test_nothing_of_sglang_is_left_to_be_imported(print_of: PrintOf, sglang_models: dict[str, Path]) -> None:
    assert json.loads(print_of("first_build", str(sglang_models["llama-tiny"])).splitlines()[-1]) == []
