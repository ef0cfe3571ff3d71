"""What a worker of SGLang says of its end when CUDA fails under it."""

from __future__ import annotations

from pathlib import Path

import pytest

from config.errors import EngineError
from enginepool.process import DEVICE_FAULT_EXIT
from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import RunProgram

ILLEGAL = "an illegal memory access was encountered"
ASSERT = "device-side assert triggered"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (f"CUDA error: {ILLEGAL}", True),
        ("CUDA error: misaligned address", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: the remote procedural call between the MPS server and the MPS client failed", True),
        (f"CUDA error: {ASSERT}", False),
        ("CUDA error: the MPS client has been terminated by the server", False),
        ("CUDA error: the MPS server is not ready to accept new MPS client requests", False),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", False),
    ],
)
def test_what_ends_all_clients_of_a_gpu_is_told_from_what_ends_one(text: str, fault: bool) -> None:
    from enginepool.engines.sglang.faults import is_device_fault

    assert is_device_fault(RuntimeError(text)) == fault


def test_a_cause_counts_too() -> None:
    from enginepool.engines.sglang.faults import is_device_fault

    error = EngineError("there is no memory for the KV cache's first page")
    error.__cause__ = RuntimeError(f"CUDA error: {ILLEGAL}")
    assert is_device_fault(error)


@pytest.mark.sglang
@NEEDS_SGLANG
@pytest.mark.parametrize(
    ("where", "text", "code"),
    [("serving", ILLEGAL, DEVICE_FAULT_EXIT), ("building", ILLEGAL, DEVICE_FAULT_EXIT), ("serving", ASSERT, 1)],
)
def test_the_worker_ends_with_a_code_of_its_own(
    run_program: RunProgram, sglang_models: dict[str, Path], where: str, text: str, code: int
) -> None:
    status, _ = run_program("device_fault", str(sglang_models["llama-tiny"]), where, text)
    assert status == code
