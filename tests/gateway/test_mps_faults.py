"""A GPU that fails under its workers, with real processes: simulated workers end as those on such a GPU do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from gateway.report import Status
from tests.gateway.test_faults import ends_with_error, stream, wait_for_running
from tests.rig.asking import Answer, chat
from tests.rig.fake_mps import gpu_pool
from tests.rig.serving import Prism, ServePrism

POISON = [{"role": "user", "content": "poison"}]
InBackground = Callable[..., "Future[Answer]"]

pytestmark = pytest.mark.usefixtures("fake_mps")


@pytest.fixture
def in_background() -> Iterator[InBackground]:
    with ThreadPoolExecutor(max_workers=8) as threads:
        yield threads.submit


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")


def serve(serve_prism: ServePrism, *models: str, ttft: float = 0.3, **pool: Any) -> Prism:
    args = {"ttft": ttft, "tpot": 0.01, "faulty": "poison"}
    prism = serve_prism({"pool": gpu_pool(engine_args=args, **pool), "models": [{"name": model} for model in models]})
    prism.wait_for_workers()
    return prism


def pids(prism: Prism) -> list[int | None]:
    return [worker.pid for worker in prism.status().workers]


def wait_until_whole(prism: Prism) -> None:
    """All workers are of the pool, and share their GPUs by MPS."""

    def whole(status: Status) -> bool:
        return all(worker.mps and worker.state not in ("starting", "isolated") for worker in status.workers)

    prism.wait_until(whole, "all workers are back")


def test_a_fault_costs_the_streams_of_its_gpu_and_nothing_else(serve_prism: ServePrism) -> None:
    prism = serve(serve_prism, "guilty", "beside", "elsewhere", devices=("cuda:0", "cuda:1"))
    prism.command("activate", model="guilty", worker=0)
    prism.command("activate", model="beside", worker=1)
    prism.command("activate", model="elsewhere", worker=2)
    before = pids(prism)
    beside, elsewhere = stream(prism, "beside"), stream(prism, "elsewhere")
    assert chat(prism, "guilty", messages=POISON).json["error"]["code"] == "device_fault"
    assert "the GPU failed under it" in ends_with_error(beside, "aborted")["message"]
    elsewhere.next()
    elsewhere.disconnect()
    wait_until_whole(prism)
    after = pids(prism)
    assert [new != old for new, old in zip(after, before, strict=True)] == [True, True, False, False]
    assert chat(prism, "beside").status == 200


def test_who_had_no_byte_is_served_and_the_guilty_request_is_refused(
    serve_prism: ServePrism, in_background: InBackground
) -> None:
    prism = serve(serve_prism, "a", "b", "c", workers=3, ttft=1.0)
    for number, model in enumerate("abc"):
        prism.command("activate", model=model, worker=number)
    innocents = [in_background(chat, prism, model) for model in "abcabc"]
    wait_for_running(prism, "b")
    guilty = in_background(chat, prism, "a", messages=POISON)
    assert [answer.result().status for answer in innocents] == [200] * 6
    refusal = guilty.result()
    assert (refusal.status, refusal.json["error"]["code"]) == (500, "device_fault")
    assert "served nothing else" in refusal.json["error"]["message"]
    assert "Retry-After" not in refusal.headers
    wait_until_whole(prism)


def test_what_may_have_caused_it_runs_on_a_worker_that_is_no_client(
    serve_prism: ServePrism, in_background: InBackground
) -> None:
    prism = serve(serve_prism, "a", "b", ttft=2.0)
    for number, model in enumerate("ab"):
        prism.command("activate", model=model, worker=number)
    suspect = in_background(chat, prism, "b")
    guilty = in_background(chat, prism, "a", messages=POISON)

    def apart(status: Status) -> bool:
        return any(it.state == "isolated" and it.pid and not it.mps for it in status.workers)

    prism.wait_until(apart, "an isolated worker's process is there, and no client")
    assert suspect.result().status == 200
    assert guilty.result().status == 500
    wait_until_whole(prism)


def test_without_mps_a_fault_is_its_workers_own(serve_prism: ServePrism) -> None:
    prism = serve(serve_prism, "guilty", "beside", mps="off")
    prism.command("activate", model="guilty", worker=0)
    prism.command("activate", model="beside", worker=1)
    before = pids(prism)
    beside = stream(prism, "beside")
    assert chat(prism, "guilty", messages=POISON).json["error"]["code"] == "worker_crash"
    beside.next()
    beside.disconnect()
    assert pids(prism)[1] == before[1]


def test_the_death_of_one_client_is_its_own(serve_prism: ServePrism) -> None:
    prism = serve(serve_prism, "a", "b")
    prism.command("activate", model="a", worker=0)
    prism.command("activate", model="b", worker=1)
    beside = stream(prism, "b")
    os.kill(prism.pid(0), 9)
    prism.wait_until(lambda status: status.workers[0].restarts == 1, "it is replaced")
    beside.next()
    beside.disconnect()
