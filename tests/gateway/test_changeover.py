"""Another policy while the gateway runs: no request is lost, the processes and the weights stay."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from enginepool.messages import CommandResult
from gateway.cli.main import main
from gateway.demo_models import NAMES
from gateway.report import Status
from tests.rig.asking import CHAT, HELLO, chat, session, streaming
from tests.rig.serving import Prism, ServePrism, simulated

FAST: dict[str, Any] = {"engine_args": {"tpot": "1ms", "activation": "10ms"}}
POLICIES = ("prism", "space", "lru", "static", "prism-paper", "serverless", "swap")


def pids(prism: Prism) -> list[int | None]:
    return [worker.pid for worker in prism.status().workers]


async def ask_for_ever(client: aiohttp.ClientSession, model: str, stop: asyncio.Event) -> list[int]:
    """One chat after another, streamed to its end; the status of each."""
    statuses = []
    while not stop.is_set():
        body = {"model": model, "messages": HELLO, "stream": True, "max_tokens": 5}
        async with client.post(CHAT, json=body) as response:
            text = await response.text()
            statuses.append(response.status if text.endswith("data: [DONE]\n\n") else 0)
    return statuses


async def change_under_load(prism: Prism, models: tuple[str, ...], policies: tuple[str, ...]) -> list[int]:
    """Every policy once, while each model is asked by two clients; the status of each answer."""
    stop = asyncio.Event()
    async with session(prism) as client:
        clients = [asyncio.create_task(ask_for_ever(client, model, stop)) for model in models * 2]
        for policy in policies:
            result = await asyncio.to_thread(prism.command, "policy", policy=policy)
            assert result.ok, result.text
            assert prism.status().policy == policy
        stop.set()
        return [status for statuses in await asyncio.gather(*clients) for status in statuses]


async def test_no_request_is_lost_whatever_the_policy_becomes(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", "b", "c", pool={**FAST, "workers_per_device": 3, "device_memory": "80GiB"}))
    prism.wait_for_workers()
    before = pids(prism)

    statuses = await change_under_load(prism, ("a", "b", "c"), POLICIES)

    assert set(statuses) == {200}
    assert pids(prism) == before


async def test_real_weights_stay_in_host_memory(serve_prism: ServePrism, demo_folder: Path) -> None:
    models = [{"name": name, "path": str(demo_folder / name)} for name in NAMES]
    prism = serve_prism({"models": models, "pool": {"workers_per_device": 3}, "scheduler": {"policy": "prism"}})
    for name in NAMES:
        assert chat(prism, name, max_tokens=1).status == 200
    before, loads = pids(prism), sum("loaded " in line for line in prism.log)
    text = chat(prism, NAMES[0], max_tokens=8, temperature=0).json["choices"][0]["message"]["content"]

    statuses = await change_under_load(prism, NAMES, ("space", "lru", "prism"))

    assert set(statuses) == {200}
    assert pids(prism) == before
    assert sum("loaded " in line for line in prism.log) == loads
    assert chat(prism, NAMES[0], max_tokens=8, temperature=0).json["choices"][0]["message"]["content"] == text


def test_a_change_begins_with_blank_workers_and_what_is_pinned(serve_prism: ServePrism) -> None:
    registry = simulated(pool={**FAST, "workers_per_device": 3})
    registry["models"] = [{"name": "pinned", "pinned": True}, {"name": "a"}, {"name": "b"}]
    prism = serve_prism(registry)
    prism.wait_until(lambda s: s.ready, "the pinned model is active")
    for model in ("a", "b"):
        assert prism.command("activate", model=model).ok
    assert prism.command("evict", model="b").ok

    assert prism.command("policy", policy="lru").ok

    status = prism.wait_until(lambda s: s.ready, "the pinned model is active again")
    assert sorted(worker.state for worker in status.workers) == ["active", "blank", "blank"]


async def test_what_does_not_finish_in_time_is_left_alone(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool={"engine_args": {"tpot": "1h"}}))
    async with session(prism) as client, streaming(client, "a", 5):
        result = await asyncio.to_thread(prism.command, "policy", policy="space", within=0.05)

        assert not result.ok
        assert result.text == "1 requests still run after 0.05 s; the policy is lru as before"
        assert prism.status().policy == "lru"
        assert prism.status().in_flight == 1


async def test_who_arrives_meanwhile_waits_and_may_leave(serve_prism: ServePrism) -> None:
    """One stream holds up the change until its client goes."""
    prism = serve_prism(simulated("a", "b", pool={"engine_args": {"tpot": "1h"}}))
    async with session(prism) as client:
        async with streaming(client, "a", 5):
            change = asyncio.create_task(asyncio.to_thread(prism.command, "policy", policy="space"))
            await asyncio.to_thread(prism.wait_until, being_changed, "the change has begun")
            second = await asyncio.to_thread(prism.command, "policy", policy="lru")
            assert second.text == "a change of the policy is under way already"
            waits = asyncio.create_task(first_byte(client, "b"))
            leaves = asyncio.create_task(first_byte(client, "b"))
            await asyncio.to_thread(prism.wait_until, lambda s: s.in_flight == 3, "both have arrived")
            leaves.cancel()
            await asyncio.to_thread(prism.wait_until, lambda s: s.in_flight == 2, "one has left")
            assert not waits.done()
        assert (await change).ok
        assert await waits == 200


def being_changed(status: Status) -> bool:
    return "the policy is being changed" in status.unready


async def first_byte(client: aiohttp.ClientSession, model: str) -> int:
    async with streaming(client, model, 5):
        return 200


def test_an_operator_who_waits_for_a_model_is_told(serve_prism: ServePrism) -> None:
    """The activation takes an hour, whose worker is replaced in the end."""
    pool = {"engine_args": {"activation": "1h"}, "workers_per_device": 1, "transition_timeout": "300ms"}
    prism = serve_prism(simulated("a", pool=pool))
    prism.wait_for_workers()
    answers: list[CommandResult] = []
    waiting = threading.Thread(target=lambda: answers.append(prism.command("activate", model="a")))
    waiting.start()
    prism.wait_until(lambda s: s.workers[0].state == "activating", "the activation has begun")

    assert prism.command("policy", policy="lru").ok
    waiting.join()

    assert not answers[0].ok
    prism.wait_for_workers()


def test_every_part_of_a_recording_can_be_replayed(
    serve_prism: ServePrism, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.jsonl"
    pool = {**FAST, "device_memory": "80GiB"}
    prism = serve_prism(simulated("a", "b", "c", pool=pool), arguments=("--record", str(file)))
    for policy in ("prism", "space"):
        for model in ("a", "b", "c"):
            assert chat(prism, model).status == 200
        assert prism.command("policy", policy=policy).ok
    assert chat(prism, "a").status == 200
    prism.stop()

    parts = [file, tmp_path / "run.2.jsonl", tmp_path / "run.3.jsonl"]
    assert [json.loads(part.read_text().splitlines()[0])["registry"]["scheduler"]["policy"] for part in parts] == [
        "lru",
        "prism",
        "space",
    ]
    for part in parts:
        with pytest.raises(SystemExit) as ended:
            main(["replay", str(part)])
        assert ended.value.code == 0, capsys.readouterr()


def test_a_policy_that_there_is_not_is_told(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=FAST))
    result = prism.command("policy", policy="best")
    assert not result.ok
    assert result.text.startswith("there is no policy best; there are prism, ")
