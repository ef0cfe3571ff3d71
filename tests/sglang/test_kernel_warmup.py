"""A model that was never served on a machine is asked a few things by its own worker, so that its first real requests
need not wait for kernels to be compiled. There are none on a CPU: the folder for them is what switches it on here."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio
from msgspec import structs

from enginepool.engine import Emit
from enginepool.engines.sglang.front.kernel_warmup import LENGTHS, TOKENS, KernelWarmup, Traffic
from enginepool.engines.sglang.front.requests import FrontRequest
from enginepool.messages import Chunk, Counted, Done, Head, Rehearsing, Reply, WorkerActivated, WorkerStats
from enginepool.pool.forks import ForkServer
from gateway.cli.warm import warm
from tests.rig.models import Stored
from tests.rig.serving import PATIENCE, Prism
from tests.rig.sglang_models import NEEDS_SGLANG, Worker, adopting, template

LONGEST = 64
"""Tokens that a prompt may have."""

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Triton would keep what it compiles."""
    return tmp_path_factory.mktemp("kernels") / "cache"


@pytest.fixture(scope="module", autouse=True)
def switched_on(kernels: Path) -> Iterator[None]:
    """Before the template starts, from which workers have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(kernels))
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sglang_forks(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ForkServer]:
    """Of a template of its own."""
    with adopting():
        async with template(tmp_path_factory.mktemp("run")) as forks:
            yield forks


@pytest.fixture
def llama(sglang_stored: dict[str, Stored], kernels: Path) -> Iterator[Stored]:
    stored = sglang_stored["llama-tiny"]
    yield stored
    mark_of(stored, kernels).unlink(missing_ok=True)


def mark_of(stored: Stored, kernels: Path) -> Path:
    return kernels / f"prism-{stored.manifest.key}"


def marks(kernels: Path) -> list[Path]:
    return list(kernels.glob("prism-*"))


def made(mark: Path) -> int:
    """Wait for a mark; when it was made, in nanoseconds."""
    until = time.monotonic() + PATIENCE
    while not mark.exists():
        assert time.monotonic() < until, f"{mark} is not made"
        time.sleep(0.01)
    return mark.stat().st_mtime_ns


async def wait_for(mark: Path) -> int:
    return await asyncio.to_thread(made, mark)


async def test_a_model_is_rehearsed_once_on_a_machine(
    sglang_worker: Worker, llama: Stored, kernels: Path, sglang_answers: dict[str, str]
) -> None:
    worker = sglang_worker
    await worker.activate(llama)
    at_first = await wait_for(mark_of(llama, kernels))
    assert await worker.complete() == sglang_answers["llama-tiny"]
    await worker.park()
    await worker.blank()
    await worker.activate(llama)
    await worker.park()  # which waits for what the worker has begun
    assert await wait_for(mark_of(llama, kernels)) == at_first


async def test_the_gateway_knows_when_it_begins_and_ends(sglang_worker: Worker, llama: Stored, kernels: Path) -> None:
    worker = sglang_worker
    await worker.activate(llama)
    await wait_for(mark_of(llama, kernels))
    await worker.park()
    told = [it for it in worker.log if isinstance(it, (Rehearsing, WorkerActivated))]
    assert [type(it) for it in told] == [Rehearsing, WorkerActivated, Rehearsing]
    assert [it.begins for it in told if isinstance(it, Rehearsing)] == [True, False]


async def test_no_client_hears_of_it(sglang_worker: Worker, llama: Stored, kernels: Path) -> None:
    worker = sglang_worker
    await worker.activate(llama)
    await wait_for(mark_of(llama, kernels))
    await worker.park()
    answers = [message for message in worker.log if isinstance(message, (Reply, Counted, Head, Chunk, Done))]
    assert answers == []
    assert all(message.running == message.waiting == 0 for message in worker.log if isinstance(message, WorkerStats))


async def test_who_asks_meanwhile_is_answered(
    sglang_worker: Worker, llama: Stored, kernels: Path, sglang_answers: dict[str, str]
) -> None:
    await sglang_worker.activate(llama)
    assert await sglang_worker.complete() == sglang_answers["llama-tiny"]
    assert await sglang_worker.complete() == sglang_answers["llama-tiny"]
    await wait_for(mark_of(llama, kernels))


async def test_whom_the_model_was_activated_for_asks_first(tmp_path: Path) -> None:
    asked: list[str] = []

    async def run(live: FrontRequest, emit: Emit) -> None:
        asked.append("warmup")
        emit(Reply(live.id, 200, "application/json", b"{}", 0, 0))

    manager = SimpleNamespace(
        is_generation=True, max_req_input_len=LONGEST, server_args=SimpleNamespace(grammar_backend="none")
    )
    traffic = Traffic()
    warmup = asyncio.create_task(KernelWarmup(tmp_path / "mark", run, manager, traffic).perform())
    await asyncio.sleep(0)  # it has begun, and the model is said to be active
    traffic.begin()
    asked.append("client")
    await asyncio.sleep(0)
    traffic.end()
    await warmup
    assert asked == ["client"] + ["warmup"] * len([length for length in LENGTHS if length < LONGEST - TOKENS])
    assert (tmp_path / "mark").exists()


async def test_parking_cuts_it_short(
    sglang_worker: Worker, llama: Stored, kernels: Path, sglang_answers: dict[str, str]
) -> None:
    await sglang_worker.activate(llama)
    await sglang_worker.park()
    assert marks(kernels) == []
    await sglang_worker.activate(llama)
    assert await sglang_worker.complete() == sglang_answers["llama-tiny"]
    await wait_for(mark_of(llama, kernels))


async def test_a_model_for_embeddings_is_asked_for_some(sglang_worker: Worker, llama: Stored, kernels: Path) -> None:
    for_embeddings = replace(llama, spec=structs.replace(llama.spec, engine_args={"is_embedding": True}))
    await sglang_worker.activate(for_embeddings)
    await wait_for(mark_of(llama, kernels))
    reply = await sglang_worker.ask("/v1/embeddings", input="Once")
    assert reply.status == 200, reply.body


async def test_prism_warm_has_every_model_rehearsed_and_goes_on_after_one_that_fails(
    tmp_path_factory: pytest.TempPathFactory, sglang_models: dict[str, Path], kernels: Path
) -> None:
    folder = tmp_path_factory.mktemp("warm")
    broken = folder / "broken"
    shutil.copytree(sglang_models["llama-tiny"], broken)
    (broken / "model.safetensors").write_bytes(b"no weights")
    models = [{"name": path.name, "path": str(path)} for path in (broken, sglang_models["qwen3-tiny"])]
    pool = {"engine": "sglang", "kv_memory": "64MiB", "workers_per_device": 1}
    prism = await asyncio.to_thread(Prism.start, folder / "gateway", {"pool": pool, "models": models})
    said: list[str] = []
    try:
        assert not await asyncio.to_thread(warm, prism.admin_socket, [], said.append)
        failed, rehearsed = said
        assert failed.startswith("broken cannot be activated")
        assert rehearsed.startswith("qwen3-tiny: active after")
        assert len(marks(kernels)) == 1
        assert prism.model("qwen3-tiny").state != "active"
    finally:
        await asyncio.to_thread(prism.close)
        for mark in marks(kernels):
            mark.unlink()
