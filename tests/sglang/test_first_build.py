"""A worker's first model is built as quickly as later ones: what that needs once is done while the worker is blank."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig.sglang_models import NEEDS_SGLANG

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]


def test_nothing_of_sglang_is_left_to_be_imported(sglang_models: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "tests.sglang.programs.first_build", str(sglang_models["llama-tiny"])]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    assert json.loads(output.splitlines()[-1]) == []
