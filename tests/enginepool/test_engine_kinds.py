"""Every engine that a registry may name is known wherever one is looked up by its name."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

from config.engine_args import MODEL_ARGUMENTS, POOL_ARGUMENTS
from config.engines import ENGINES
from config.registry import EngineName
from enginepool.engines.kinds import KINDS


def test_every_engine_of_the_registry_is_in_every_table() -> None:
    for table in (ENGINES, POOL_ARGUMENTS, MODEL_ARGUMENTS, KINDS):
        assert set(table) == set(get_args(EngineName))


def test_looking_an_engine_up_imports_none_of_them() -> None:
    code = "import sys, enginepool.engines.kinds; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "enginepool.engines.kinds.sglang" in done.stdout.split()
    assert not {"torch", "sglang", "transformers"} & set(done.stdout.split())
