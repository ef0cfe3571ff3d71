"""Models on several devices behind the real gateway. The simulated engine's workers know nothing of each other: the
leader answers for all.
"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gateway.report import Status
from tests.rig.asking import chat
from tests.rig.serving import Prism, ServePrism, simulated

TWO_DEVICES = {"devices": ["d0", "d1"], "workers_per_device": 1, "kv_memory": "1GiB"}


def registry(**engine_args: float) -> dict[str, Any]:
    made = simulated("big", pool={**TWO_DEVICES, "engine_args": {"tpot": 0.01, **engine_args}})
    made["models"] = [{"name": "big", "tensor_parallel": 2}]
    return made


def all_run(status: Status) -> bool:
    return all(worker.running == 1 for worker in status.workers)


def test_one_worker_answers_and_the_other_is_taken(serve_prism: ServePrism) -> None:
    prism = serve_prism(registry())
    prism.wait_for_workers()

    assert chat(prism, "big").status == 200

    assert [(worker.state, worker.model) for worker in prism.status().workers] == [("active", "big")] * 2
    assert prism.command("evict", model="big").ok
    prism.wait_for_workers("parked")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_request_outlives_each_of_its_workers(serve_prism: ServePrism, victim: int) -> None:
    prism: Prism = serve_prism(registry(ttft=1.0))
    prism.wait_for_workers()
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(chat, prism, "big")
        before = {worker.pid for worker in prism.wait_until(all_run, "the request runs").workers}

        os.kill(prism.pid(victim), signal.SIGKILL)

        assert answer.result().status == 200
    assert not before & {worker.pid for worker in prism.status().workers}, "both were replaced"
