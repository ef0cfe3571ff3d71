"""Workers that share a GPU by MPS: what one of them does to the others when it ends, well or badly.

Its gateway is one of its own, whose ranks write to memory that is not theirs when told to (`faulty/sitecustomize.py`).
`-s` shows the times.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.subjects.device_memory import DeviceMemory
from config.gpus import bytes_by_process
from enginepool.mps.control import PIPES, servers
from enginepool.mps.control import ask as ask_daemon
from gateway.report import Status
from tests.gpu.settings import MODELS, PATIENCE, PROMPTS, SLACK, answer, registry
from tests.rig import asking, serving
from tests.rig.asking import Answer, ask, session, streaming
from tests.rig.serving import Prism

pytestmark = pytest.mark.gpu

FAULTY = Path(__file__).parent / "faulty"
HIT, BESIDE, OTHER = MODELS
LONG = 4000
"""Tokens of an answer that is under way when something happens."""
GOAL = 5.0
"""Seconds from an illegal access until all that was active serves again; told, not asserted."""


@pytest.fixture(scope="module")
def prism(
    run_mark: str, models: Path, memory: DeviceMemory, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prism]:
    """In place of the one that other tests share."""
    before = memory.used
    given = registry(models)
    more = {"mps": "on", "workers_per_device": 5, "device_memory": "48GiB", "silence": "5s"}
    pool = {**given["pool"], **more}  # type: ignore[dict-item]
    with pytest.MonkeyPatch.context() as patch:
        for module in (asking, serving):
            patch.setattr(module, "PATIENCE", PATIENCE)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FAULTY), os.environ.get("PYTHONPATH")])))
        prism = Prism.start(tmp_path_factory.mktemp("mps") / "g", {**given, "pool": pool})
        prism.wait_for_workers()
        yield prism
        processes = prism.descendants()
        prism.close()
    assert not psutil.wait_procs(processes, timeout=PATIENCE)[1]
    assert memory.used <= before + SLACK


@pytest.fixture
def at_once() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=16) as threads:
        yield threads


def rank_of(prism: Prism, model: str, state: str = "active") -> psutil.Process:
    worker = next(it for it in prism.status().workers if it.model == model and it.state == state)
    (rank,) = psutil.Process(prism.pid(worker.worker)).children()
    return rank


def whole(prism: Prism, model: str, tokens: int = LONG) -> Answer:
    """An answer that has no byte before its end."""
    sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
    body: dict[str, Any] = {"model": model, "input_ids": PROMPTS[1], "sampling_params": sampling}
    return ask(prism, "POST", "/generate", body)


def all_active(prism: Prism) -> None:
    for model in MODELS:
        answer(prism, model, PROMPTS[0])
    prism.wait_until(lambda s: not any(it.rehearsing for it in s.workers), "all kernels are compiled")


def wait_until_running(prism: Prism, *models: str) -> None:
    def running(status: Status) -> bool:
        at_work = {it.model for it in status.workers if it.running}
        return at_work >= set(models)

    prism.wait_until(running, f"requests of {models} run")


def wait_until_back(prism: Prism) -> None:
    def back(status: Status) -> bool:
        return all(it.mps and it.state not in ("starting", "isolated") for it in status.workers)

    prism.wait_until(back, "all workers share the GPU again")


# who is a client, and what is known of it


async def test_every_rank_is_a_client_of_the_gateways_own_daemon(prism: Prism) -> None:
    all_active(prism)
    (daemon,) = (it for it in prism.descendants() if it.name().startswith("nvidia-cuda-mps") and "-f" in it.cmdline())
    pipes = daemon.environ()[PIPES]
    assert Path(pipes).is_relative_to(prism.admin_socket.parent)
    (server,) = await servers(pipes)
    clients = {int(pid) for pid in (await ask_daemon(pipes, f"get_client_list {server}")).split()}
    fronts = [psutil.Process(prism.pid(worker.worker)) for worker in prism.status().workers]
    assert clients == {rank.pid for front in fronts for rank in front.children()}


def test_what_a_worker_holds_is_its_own_account(prism: Prism, memory: DeviceMemory) -> None:
    all_active(prism)
    known = bytes_by_process(memory._handle)
    for model, least in zip(MODELS, (1.0, 2.0, 5.0), strict=True):
        rank = rank_of(prism, model)
        worker = next(it for it in prism.status().workers if it.model == model)
        print(f"{model}: NVML {known.get(rank.pid, 0) / 2**30:.2f} GiB, held {worker.held_bytes / 2**30:.2f}")
        assert worker.held_bytes < 8 * 2**30
        assert known.get(rank.pid, least * 2**30) >= least * 2**30


# ends of one client


async def test_a_killed_rank_costs_its_own_streams_only(prism: Prism) -> None:
    all_active(prism)
    async with session(prism) as client, streaming(client, HIT, LONG) as hit, streaming(client, BESIDE, LONG) as beside:
        rank_of(prism, HIT).kill()
        assert b'"error"' in await hit.read()
        assert b'"error"' not in await beside.read()
    wait_until_back(prism)


async def test_a_worker_that_hangs_leaves_the_gpu_by_the_daemons_own_way(prism: Prism) -> None:
    """Then it is killed, and nobody else notices."""
    all_active(prism)
    async with session(prism) as client, streaming(client, HIT, LONG) as hit, streaming(client, OTHER, LONG) as other:
        worker = next(it for it in prism.status().workers if it.model == HIT)
        rank = rank_of(prism, HIT)
        psutil.Process(prism.pid(worker.worker)).suspend()
        prism.wait_until(lambda s: s.workers[worker.worker].restarts > worker.restarts, "it is replaced")
        assert not rank.is_running()
        assert b'"error"' in await hit.read()
        assert b'"error"' not in await other.read()
    wait_until_back(prism)


# an illegal access


async def test_after_an_illegal_access_all_serve_again_and_nothing_without_a_byte_is_lost(
    prism: Prism, at_once: ThreadPoolExecutor
) -> None:
    all_active(prism)
    async with session(prism) as client, streaming(client, HIT, LONG) as hit, streaming(client, OTHER, LONG) as other:
        waiting = [at_once.submit(whole, prism, model) for model in (BESIDE, BESIDE, OTHER)]
        wait_until_running(prism, *MODELS)
        began = time.monotonic()
        rank_of(prism, HIT).send_signal(signal.SIGUSR1)
        first = _first_answers(prism, at_once, began)
        assert b'"error"' in await hit.read()
        assert b'"error"' in await other.read()
        times = {model: future.result() for model, future in first.items()}
        print(f"all serve again after {max(times.values()):.2f} s (goal {GOAL:g}): {times}")
        assert [future.result().status for future in waiting] == [200] * 3
        print(f"all suspects were served after {time.monotonic() - began:.2f} s")
    wait_until_back(prism)
    print(f"all workers are back after {time.monotonic() - began:.2f} s")
    all_active(prism)


def _first_answers(prism: Prism, at_once: ThreadPoolExecutor, began: float) -> dict[str, Future[float]]:
    """Seconds until each model answers a request that came with the fault."""

    def first(model: str) -> float:
        assert whole(prism, model, tokens=1).status == 200
        return time.monotonic() - began

    return {model: at_once.submit(first, model) for model in MODELS}


def test_a_request_that_kills_the_worker_apart_as_well_is_refused(prism: Prism, at_once: ThreadPoolExecutor) -> None:
    all_active(prism)
    guilty = at_once.submit(whole, prism, HIT)
    wait_until_running(prism, HIT)
    rank_of(prism, HIT).send_signal(signal.SIGUSR1)
    prism.wait_until(lambda s: any(it.state == "isolated" and it.running for it in s.workers), "the suspect runs apart")
    beside = at_once.submit(whole, prism, BESIDE)
    wait_until_running(prism, BESIDE)
    rank_of(prism, HIT, "isolated").send_signal(signal.SIGUSR1)
    refusal = guilty.result()
    assert (refusal.status, refusal.error["code"]) == (500, "device_fault")
    assert beside.result().status == 200
    wait_until_back(prism)
