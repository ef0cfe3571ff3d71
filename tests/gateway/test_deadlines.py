"""Deadlines: who goes first, who is told to come back later, and that nobody else is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from tests.rig.asking import CHAT, ENDLESS, HELLO, chat, session, streaming
from tests.rig.serving import Prism, ServePrism, simulated

ONE_AT_A_TIME: dict[str, Any] = {
    "workers_per_device": 1,
    "max_running": 1,
    "engine_args": {"ttft": "10ms", "tpot": "1ms", "activation": "10ms"},
}


def busy_registry(
    *, scheduler: dict[str, Any] | None = None, limits: dict[str, Any] | None = None
) -> dict[str, object]:
    """One patient model on one worker that answers one request at a time."""
    registry = simulated("m", pool=ONE_AT_A_TIME, scheduler=scheduler or {}, gateway={"limits": limits or {}})
    return {**registry, "models": [{"name": "m", "slo": {"ttft": "300s"}}]}


async def ask_with_slo(client: aiohttp.ClientSession, milliseconds: float) -> aiohttp.ClientResponse:
    body = {"model": "m", "messages": HELLO, "max_tokens": 1}
    async with client.post(CHAT, json=body, headers={"X-SLO-TTFT-MS": f"{milliseconds:g}"}) as response:
        await response.read()
        return response


def wait_for_queue(prism: Prism, length: int) -> None:
    prism.wait_until(lambda status: status.waiting == length, f"{length} requests wait")


async def test_what_is_due_first_is_answered_first(serve_prism: ServePrism) -> None:
    prism = serve_prism(busy_registry())
    answered: list[int] = []

    async def ask(seconds: int) -> None:
        response = await ask_with_slo(client, 1000 * seconds)
        assert response.status == 200
        answered.append(seconds)

    async with session(prism) as client, asyncio.TaskGroup() as tasks, streaming(client, "m", ENDLESS):
        for queued, seconds in enumerate((500, 300, 400, 100, 200), start=1):
            tasks.create_task(ask(seconds))
            await asyncio.to_thread(wait_for_queue, prism, queued)
    assert answered == [100, 200, 300, 400, 500]


async def test_without_the_header_the_models_own_slo_is_the_deadline(serve_prism: ServePrism) -> None:
    prism = serve_prism(busy_registry())
    answered: list[str] = []

    async def ask(name: str, headers: dict[str, str]) -> None:
        body = {"model": "m", "messages": HELLO, "max_tokens": 1}
        async with client.post(CHAT, json=body, headers=headers) as response:
            await response.read()
        answered.append(name)

    async with session(prism) as client, asyncio.TaskGroup() as tasks, streaming(client, "m", ENDLESS):
        waiting = [("400 s", {"X-SLO-TTFT-MS": "400000"}), ("the model's", {}), ("200 s", {"x-slo-ttft-ms": "2e5"})]
        for queued, (name, headers) in enumerate(waiting, start=1):
            tasks.create_task(ask(name, headers))
            await asyncio.to_thread(wait_for_queue, prism, queued)
    assert answered == ["200 s", "the model's", "400 s"]


async def test_a_late_request_is_served_all_the_same(serve_prism: ServePrism) -> None:
    prism = serve_prism(busy_registry())
    assert chat(prism, "m", max_tokens=1, headers={"X-SLO-TTFT-MS": "0.001"}).status == 200


async def test_a_late_request_is_refused_where_the_registry_says_so(serve_prism: ServePrism) -> None:
    prism = serve_prism(busy_registry(scheduler={"late": "refuse"}))
    async with session(prism) as client, streaming(client, "m", ENDLESS):
        response = await ask_with_slo(client, 20)
        assert response.status == 429
        assert int(response.headers["Retry-After"]) >= 1
        error = (await response.json())["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "deadline_unreachable")
        assert prism.model("m").running == 1
        assert prism.model("m").waiting == 0


async def test_what_can_be_met_is_served_where_late_requests_are_refused(serve_prism: ServePrism) -> None:
    prism = serve_prism(busy_registry(scheduler={"late": "refuse"}))
    assert chat(prism, "m", max_tokens=1, headers={"X-SLO-TTFT-MS": "600000"}).status == 200


async def test_a_full_queue_refuses_more_and_says_when_to_come_back(serve_prism: ServePrism) -> None:
    prism = serve_prism(busy_registry(limits={"queue_per_model": 2}))
    async with session(prism) as client, AsyncExitStack() as busy:
        await busy.enter_async_context(streaming(client, "m", ENDLESS))
        waiting = [asyncio.create_task(ask_with_slo(client, 1000)) for _ in range(2)]
        await asyncio.to_thread(wait_for_queue, prism, 2)

        refused = await ask_with_slo(client, 1000)
        assert refused.status == 429
        assert int(refused.headers["Retry-After"]) >= 1
        error = (await refused.json())["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")

        await busy.aclose()
        assert [response.status for response in await asyncio.gather(*waiting)] == [200, 200]


async def test_a_full_queue_of_one_model_is_nothing_to_another(serve_prism: ServePrism) -> None:
    registry = simulated("m", "other", pool={**ONE_AT_A_TIME, "workers_per_device": 2})
    prism = serve_prism({**registry, "gateway": {"limits": {"queue_per_model": 1}}})
    async with session(prism) as client, AsyncExitStack() as busy:
        await busy.enter_async_context(streaming(client, "m", ENDLESS))
        waiting = asyncio.create_task(ask_with_slo(client, 1000))
        await asyncio.to_thread(wait_for_queue, prism, 1)
        assert (await ask_with_slo(client, 1000)).status == 429
        assert (await asyncio.to_thread(chat, prism, "other", max_tokens=1)).status == 200
        await busy.aclose()
        assert (await waiting).status == 200


async def test_a_waiting_request_whose_client_goes_away_leaves_the_queue(serve_prism: ServePrism) -> None:
    prism = serve_prism(busy_registry())
    async with session(prism) as client, streaming(client, "m", ENDLESS):
        waiting = asyncio.create_task(ask_with_slo(client, 1000))
        await asyncio.to_thread(wait_for_queue, prism, 1)
        waiting.cancel()
        await asyncio.to_thread(wait_for_queue, prism, 0)


@pytest.fixture(scope="module")
def idle_prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    prism = Prism.start(tmp_path_factory.mktemp("deadlines") / "gateway", busy_registry())
    prism.wait_for_workers()
    yield prism
    prism.close()


@pytest.mark.parametrize("value", ["", "soon", "0", "-5", "nan", "inf", "1e300", "5ms", "\xff"])
def test_a_deadline_that_is_no_positive_number_is_refused(idle_prism: Prism, value: str) -> None:
    answer = chat(idle_prism, "m", headers={"X-SLO-TTFT-MS": value})
    assert answer.status == 400
    assert answer.error["param"] == "X-SLO-TTFT-MS"
    assert "milliseconds" in answer.error["message"]


@pytest.mark.parametrize("value", ["1", "250", "0.5", "1e4", " 100 "])
def test_a_deadline_is_a_number_of_milliseconds(idle_prism: Prism, value: str) -> None:
    assert chat(idle_prism, "m", max_tokens=1, headers={"X-SLO-TTFT-MS": value}).status == 200


def test_a_worker_that_never_ends_its_activation_is_replaced_and_its_request_refused(serve_prism: ServePrism) -> None:
    prism = serve_prism(
        simulated(
            "a", pool={"workers_per_device": 1, "transition_timeout": "300ms", "engine_args": {"activation": "1h"}}
        )
    )
    answer = chat(prism, "a", max_tokens=3)
    assert answer.status == 503
    assert "activating for more than 0.3 s" in answer.error["message"]
    assert prism.worker(0).restarts >= 1
