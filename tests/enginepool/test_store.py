"""The weight store: loading through a loader process, holding the segment, letting it go."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from config.errors import StoreError
from config.registry import PoolConfig
from enginepool import process
from enginepool.pool import store
from enginepool.pool.forks import ForkServer
from enginepool.pool.store import WeightStore
from enginepool.weights.segment import open_segment
from gateway.demo_models import NAMES
from tests.rig.children import own_children
from tests.rig.models import ignore_progress, spec_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.usefixtures("count_children")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def forks(run_mark: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForkServer]:
    """One template for all tests: its imports take seconds."""
    process.set_subreaper(True)
    forks = ForkServer(PoolConfig(engine="transformers"), tmp_path_factory.mktemp("run"))
    await forks.start()
    yield forks
    await forks.stop()
    process.set_subreaper(False)


@pytest.fixture
def held_model(demo_folder: Path, tmp_path: Path) -> Path:
    """A model whose weights never come: its file is a pipe that nobody writes to."""
    folder = shutil.copytree(demo_folder / "qwen3-tiny", tmp_path / "held")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    return folder


@pytest.fixture
def held_by_others() -> set[int]:
    """Segments that were open before the test."""
    return open_segments()


def open_segments() -> set[int]:
    """Inodes of the weight segments that this process has open."""
    files = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return {os.stat(file).st_ino for file in files if _target(file).startswith("/memfd:prism-")}


def _target(file: str) -> str:
    """Where a descriptor points; listing them takes one that is gone by now."""
    try:
        return os.readlink(file)
    except FileNotFoundError:
        return ""


async def test_a_loaded_model_outlives_its_loader(forks: ForkServer, demo_folder: Path) -> None:
    weights = WeightStore(forks)
    progress: list[tuple[int, int]] = []
    nbytes = await weights.load(spec_of(demo_folder / "qwen3-tiny"), lambda *step: progress.append(step))
    stored = weights.get("qwen3-tiny")
    assert stored is not None
    assert stored.manifest.nbytes == stored.ref.nbytes == nbytes
    assert progress[-1][0] == progress[-1][1]
    assert children(forks) == []
    mapped = open_segment(stored.ref)
    assert mapped.nbytes == nbytes
    mapped.close()
    weights.close()


async def test_dropping_and_closing_give_the_memory_back(
    forks: ForkServer, demo_folder: Path, held_by_others: set[int]
) -> None:
    weights = WeightStore(forks)
    for name in ("qwen3-tiny", "llama-tiny"):
        await weights.load(spec_of(demo_folder / name), ignore_progress)
    weights.drop("qwen3-tiny")
    weights.drop("never loaded")
    assert weights.get("qwen3-tiny") is None
    stored = weights.get("llama-tiny")
    assert stored is not None
    assert open_segments() - held_by_others == {os.stat(f"/proc/self/fd/{stored.ref.fd}").st_ino}
    weights.close()
    assert open_segments() == held_by_others


async def test_two_models_may_load_at_a_time(forks: ForkServer, demo_folder: Path) -> None:
    weights = WeightStore(forks)
    await asyncio.gather(*(weights.load(spec_of(demo_folder / name), ignore_progress) for name in NAMES))
    assert all(weights.get(name) for name in NAMES)
    weights.close()


async def test_a_model_that_cannot_be_read_is_not_stored(forks: ForkServer, tmp_path: Path) -> None:
    weights = WeightStore(forks)
    with pytest.raises(StoreError, match=r"held: .*config\.json"):
        await weights.load(spec_of(tmp_path, "held"), ignore_progress)
    assert weights.get("held") is None
    assert children(forks) == []


async def test_a_loader_that_dies_is_an_error(forks: ForkServer, held_model: Path) -> None:
    loading = asyncio.create_task(WeightStore(forks).load(spec_of(held_model), ignore_progress))
    (await loader(forks)).kill()
    with pytest.raises(StoreError, match="killed by SIGKILL"):
        await loading


async def test_a_loader_that_is_silent_for_long_is_an_error_and_killed(
    forks: ForkServer, held_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "LOAD_SILENCE", 0.2)
    with pytest.raises(StoreError, match=r"held: the loader was silent for 0\.2 s"):
        await WeightStore(forks).load(spec_of(held_model), ignore_progress)
    assert children(forks) == []


async def test_a_cancelled_load_leaves_no_loader(forks: ForkServer, held_model: Path) -> None:
    loading = asyncio.create_task(WeightStore(forks).load(spec_of(held_model), ignore_progress))
    await loader(forks)
    loading.cancel()
    await asyncio.wait((loading,))
    assert loading.cancelled()
    while children(forks):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def children(forks: ForkServer) -> list[psutil.Process]:
    """What the test has started of this process's children, but for the template."""
    return [child for child in own_children() if child.pid != forks.template_pid]


async def loader(forks: ForkServer) -> psutil.Process:
    """The loader, once it has been forked."""
    while not (found := children(forks)):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return found[0]
