"""Which GPU cuda:N is, for CUDA and for NVML."""

from __future__ import annotations

import pynvml
import pytest

from config.errors import PoolError
from config.gpus import VISIBLE, nvml_handle, visible_name
from config.registry import PoolConfig
from gateway.device_memory import capacities

UUIDS = ("GPU-11aa", "GPU-22bb", "GPU-33cc")


@pytest.mark.parametrize(
    ("listed", "index", "name"),
    [(None, 0, "0"), (None, 3, "3"), ("2,5", 0, "2"), ("2, 5", 1, "5"), ("GPU-22bb,GPU-11aa", 1, "GPU-11aa")],
)
def test_cuda_n_is_the_nth_that_is_visible(listed: str | None, index: int, name: str) -> None:
    assert visible_name(f"cuda:{index}", {} if listed is None else {VISIBLE: listed}) == name


@pytest.mark.parametrize("listed", ["", "4"])
def test_a_gpu_that_is_not_visible_is_an_error_before_anything_starts(
    listed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VISIBLE, listed)
    pool = PoolConfig(engine="sglang", devices=("cuda:1",), device_memory=2**34)
    with pytest.raises(PoolError, match=f"there is no cuda:1: CUDA_VISIBLE_DEVICES is '{listed}'"):
        capacities(pool)


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's functions; a handle is the GPU's number."""
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(UUIDS))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: UUIDS[handle])


@pytest.mark.parametrize(("name", "number"), [("2", 2), ("GPU-22bb", 1), ("GPU-3", 2)])
def test_nvml_finds_it_by_number_and_by_uuid(three_gpus: None, name: str, number: int) -> None:
    assert nvml_handle(name) == number


def test_nvml_says_that_it_knows_no_such_gpu(three_gpus: None) -> None:
    with pytest.raises(pynvml.NVMLError):
        nvml_handle("GPU-44dd")
