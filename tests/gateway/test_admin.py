"""The admin socket: what an operator can ask for, and that the answer is what happened."""

from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import psutil
import pytest

from config.errors import OperatorError
from enginepool.channel import encode_frame
from enginepool.messages import Command, CommandResult
from gateway.admin_client import read_models, read_workers
from gateway.cli.warm import warm
from gateway.report import Status, StopReport, WorkersReport, read
from tests.rig.asking import CHAT, ENDLESS, HELLO, ask, chat, events_of, session, streaming
from tests.rig.serving import PATIENCE, Prism, ServePrism, simulated

ENGINE: dict[str, Any] = {"engine_args": {"tpot": "1ms", "activation": "10ms"}}
LONG = 1000
"""Tokens of an answer that takes a second: it is still under way when the next command arrives."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Two workers, one of them held by a pinned model. Tests leave it with nothing else active."""
    registry = simulated(pool=ENGINE)
    registry["models"] = [{"name": "pinned", "pinned": True}, {"name": "a"}, {"name": "b"}]
    prism = Prism.start(tmp_path_factory.mktemp("admin") / "gateway", registry)
    prism.wait_until(lambda s: {w.state for w in s.workers} == {"active", "blank"}, "the pinned model is active")
    yield prism
    prism.close()


@pytest.fixture
def prism(shared: Prism) -> Iterator[Prism]:
    yield shared
    for model in shared.status().models:
        if model.state == "active" and not model.pinned:
            assert shared.command("evict", model=model.name, now=True).ok


@contextmanager
def hanging_command(prism: Prism, model: str, worker: int | None) -> Iterator[None]:
    """An operator who asks for a model and goes away before the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(prism.admin_socket))
        connection.sendall(encode_frame([Command("activate", model, worker)]))
        yield


def failure(result: CommandResult) -> str:
    assert not result.ok
    return result.text


async def read_stream(client: aiohttp.ClientSession, model: str, max_tokens: int, begun: asyncio.Event) -> list[str]:
    """The events of a whole stream; sets `begun` at its first."""
    body = {"model": model, "messages": HELLO, "stream": True, "max_tokens": max_tokens}
    async with client.post(CHAT, json=body) as response:
        assert response.status == 200
        first = await response.content.readuntil(b"\n\n")
        begun.set()
        return events_of(first + await response.read())


def test_only_the_owner_may_use_the_socket(prism: Prism) -> None:
    assert stat.S_IMODE(prism.admin_socket.stat().st_mode) == 0o600


# --- looking --------------------------------------------------------------------------------------------------


def test_the_status_says_what_is_where(prism: Prism) -> None:
    status = prism.status()
    assert (status.engine, status.ready, status.unready, status.draining) == ("simulated", True, [], "")
    assert (status.in_flight, status.waiting, status.loading) == (0, 0, {})
    assert [model.name for model in status.models] == ["pinned", "a", "b"]
    assert [worker.worker for worker in status.workers] == [0, 1]
    assert any("pinned is active on worker" in decision.text for decision in status.decisions)


def test_models_say_their_state_and_worker(prism: Prism) -> None:
    assert prism.command("activate", model="a").ok
    models = {model.name: model for model in read_models(prism.admin_socket)}
    assert models["a"].state == models["pinned"].state == "active"
    assert {*models["a"].workers, *models["pinned"].workers} == {0, 1}
    assert (models["pinned"].pinned, models["a"].pinned) == (True, False)
    assert (models["a"].activation_s or 0.0) >= 0.01
    assert models["b"].workers == []


def test_workers_say_their_process_and_model(prism: Prism) -> None:
    workers = read_workers(prism.admin_socket)
    assert {worker.device for worker in workers} == {"cpu"}
    for worker in workers:
        assert psutil.Process(prism.pid(worker.worker)).is_running()
    (pinned,) = (worker for worker in workers if worker.model == "pinned")
    assert (pinned.state, pinned.running, pinned.restarts) == ("active", 0, 0)
    assert list(pinned.activation_phases_s or {}) == ["simulated"]


async def test_requests_under_way_are_counted_where_they_run(prism: Prism) -> None:
    async with session(prism) as client, streaming(client, "a", ENDLESS):
        model = prism.model("a")
        assert (model.running, model.waiting) == (1, 0)
        assert prism.worker(model.workers[0]).running == 1
        assert prism.status().in_flight == 1
    prism.wait_until(lambda status: status.in_flight == 0, "the abandoned request is gone")


# --- activate -------------------------------------------------------------------------------------------------


def test_activate_answers_when_the_model_serves(prism: Prism) -> None:
    result = prism.command("activate", model="a")
    assert result.ok
    assert "a is active on worker" in result.text
    assert result.seconds >= 0.01
    assert prism.model("a").state == "active"


def test_activate_says_when_there_was_nothing_to_do(prism: Prism) -> None:
    prism.command("activate", model="a")
    again = prism.command("activate", model="a")
    assert again.ok
    assert "already" in again.text


def test_activate_takes_an_idle_models_worker_if_none_is_free(prism: Prism) -> None:
    assert prism.command("activate", model="a").ok
    assert prism.command("activate", model="b").ok
    assert prism.model("a").state == "on disk"


@pytest.mark.parametrize("number", [0, 1])
def test_activate_can_name_the_worker(serve_prism: ServePrism, number: int) -> None:
    prism = serve_prism(simulated("a", "b", pool=ENGINE))
    result = prism.command("activate", model="b", worker=number)
    assert result.ok
    assert f"b is active on worker {number}" in result.text
    assert (prism.worker(number).state, prism.worker(number).model) == ("active", "b")


@pytest.mark.parametrize("number", [-1, 2, 10**6])
def test_activate_refuses_a_worker_that_does_not_exist(prism: Prism, number: int) -> None:
    assert f"there is no worker {number}" in failure(prism.command("activate", model="a", worker=number))


def test_activate_refuses_the_worker_of_a_pinned_model(prism: Prism) -> None:
    (number,) = prism.model("pinned").workers
    assert "pinned" in failure(prism.command("activate", model="a", worker=number))
    assert prism.model("pinned").state == "active"


@pytest.mark.parametrize("command", ["activate", "evict"])
def test_a_model_that_does_not_exist_is_an_error(prism: Prism, command: str) -> None:
    assert "'nobody' does not exist" in failure(prism.command(command, model="nobody"))


# --- evict ----------------------------------------------------------------------------------------------------


def test_evict_takes_a_model_from_its_worker(prism: Prism) -> None:
    assert prism.command("activate", model="a").ok
    (number,) = prism.model("a").workers
    result = prism.command("evict", model="a")
    assert (result.ok, result.text) == (True, "a is evicted")
    assert prism.worker(number).state == "parked"


def test_what_is_not_active_or_pinned_cannot_be_evicted(prism: Prism) -> None:
    assert failure(prism.command("evict", model="a")) == "a is not active"
    assert failure(prism.command("evict", model="pinned")) == "pinned is pinned"
    assert prism.model("pinned").state == "active"


async def test_evict_lets_running_requests_finish(prism: Prism) -> None:
    begun = asyncio.Event()
    async with session(prism) as client:
        stream = asyncio.create_task(read_stream(client, "a", LONG, begun))
        await begun.wait()
        result = await asyncio.to_thread(prism.command, "evict", model="a")
        assert result.ok
        events = await stream
    assert events[-1] == "[DONE]"
    assert len(events) == LONG + 3  # the role, the end, [DONE]
    assert prism.model("a").state == "parked"


async def test_evict_now_ends_running_streams_with_an_error(prism: Prism) -> None:
    begun = asyncio.Event()
    async with session(prism) as client:
        stream = asyncio.create_task(read_stream(client, "a", ENDLESS, begun))
        await begun.wait()
        assert (await asyncio.to_thread(prism.command, "evict", model="a", now=True)).ok
        events = await stream
    assert '"error"' in events[-1]
    assert "the operator evicts it" in events[-1]
    assert prism.model("a").state == "parked"


async def test_evict_now_answers_running_requests_with_an_error(prism: Prism) -> None:
    async with session(prism) as client:
        body = {"model": "a", "messages": HELLO, "max_tokens": ENDLESS}
        asked = asyncio.create_task(client.post(CHAT, json=body))
        await asyncio.to_thread(
            prism.wait_until, lambda status: any(w.running for w in status.workers), "the request runs"
        )
        assert (await asyncio.to_thread(prism.command, "evict", model="a", now=True)).ok
        async with await asked as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error"]["code"] == "aborted"


# --- drain and resume -----------------------------------------------------------------------------------------


async def test_drain_refuses_what_is_new_and_waits_for_what_runs(prism: Prism) -> None:
    begun = asyncio.Event()
    async with session(prism) as client:
        stream = asyncio.create_task(read_stream(client, "a", LONG, begun))
        await begun.wait()
        drained = asyncio.create_task(asyncio.to_thread(prism.command, "drain"))
        await asyncio.to_thread(prism.wait_until, lambda status: bool(status.draining), "the gateway drains")

        refused = await asyncio.to_thread(chat, prism, "a")
        assert (refused.status, refused.error["code"]) == (503, "draining")
        assert int(refused.headers["Retry-After"]) >= 1
        ready = await asyncio.to_thread(ask, prism, "GET", "/ready")
        assert ready.status == 503
        assert "drain" in ready.json["reasons"][0]

        assert (await drained).ok
        assert (await stream)[-1] == "[DONE]"
    assert prism.status().in_flight == 0
    assert prism.command("resume").ok
    assert chat(prism, "a", max_tokens=1).status == 200
    assert ask(prism, "GET", "/ready").status == 200


def test_a_drained_gateway_still_answers_everything_else(prism: Prism) -> None:
    assert prism.command("drain").ok
    try:
        assert chat(prism, "a").status == 503
        assert ask(prism, "GET", "/v1/models").status == 200
        assert ask(prism, "GET", "/health").status == 200
        assert chat(prism, "nobody").status == 404
        assert prism.command("activate", model="a").ok
    finally:
        assert prism.command("resume").ok


# --- stop -----------------------------------------------------------------------------------------------------


async def test_stop_lets_running_requests_finish_and_leaves_nothing(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=ENGINE, gateway={"grace": "10m"}))
    descendants = prism.descendants()
    begun = asyncio.Event()
    async with session(prism) as client:
        stream = asyncio.create_task(read_stream(client, "a", LONG, begun))
        await begun.wait()
        result = await asyncio.to_thread(prism.command, "stop")
        assert result.ok
        assert (await stream)[-1] == "[DONE]"
    assert read(result, StopReport).in_flight == 1
    assert prism.process.wait(PATIENCE) == 0
    assert descendants
    assert not any(process.is_running() for process in descendants)
    assert not prism.admin_socket.exists()
    assert [file.name for file in prism.folder.iterdir()] == ["registry.yaml"]


async def test_stop_ends_what_does_not_finish_within_the_grace_time(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=ENGINE, gateway={"grace": "10ms"}))
    begun = asyncio.Event()
    async with session(prism) as client:
        stream = asyncio.create_task(read_stream(client, "a", ENDLESS, begun))
        await begun.wait()
        assert (await asyncio.to_thread(prism.command, "stop")).ok
        assert "The gateway is stopping." in (await stream)[-1]
    assert prism.process.wait(PATIENCE) == 0


async def test_while_it_stops_new_requests_are_refused(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=ENGINE, gateway={"grace": "10m"}))
    async with session(prism) as client, streaming(client, "a", ENDLESS):
        stopping = asyncio.create_task(asyncio.to_thread(prism.command, "stop"))
        await asyncio.to_thread(prism.wait_until, lambda status: bool(status.draining), "the gateway stops")
        refused = await asyncio.to_thread(chat, prism, "a")
        assert refused.status == 503
        assert "stopping" in refused.error["message"]
    assert (await stopping).ok
    assert prism.process.wait(PATIENCE) == 0


# --- clients that misbehave -----------------------------------------------------------------------------------


def test_a_command_that_does_not_exist_is_an_error(prism: Prism) -> None:
    assert failure(prism.command("dance")) == "there is no command dance"


def test_a_command_that_failed_has_no_report_but_says_why(prism: Prism) -> None:
    with pytest.raises(OperatorError, match="there is no command dance"):
        read(prism.command("dance"), Status)


def test_an_answer_of_another_version_is_an_error_that_names_what_does_not_fit() -> None:
    answer = CommandResult(True, "", b'{"workers": [{"worker": 0}]}', 0.0)
    with pytest.raises(OperatorError, match=r"does not fit this version of prism: .*`device`"):
        read(answer, WorkersReport)


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x01\xc1", b"\xff" * 64])
def test_a_client_that_sends_something_else_is_disconnected(prism: Prism, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE)
        connection.connect(str(prism.admin_socket))
        connection.sendall(sent)
        assert connection.recv(1) == b""
    assert prism.status().ready


@pytest.mark.parametrize("worker", [None, 0])
async def test_an_activate_that_nobody_waits_for_any_more_is_forgotten(
    serve_prism: ServePrism, worker: int | None
) -> None:
    """The other model's worker is drained for it; once its operator is gone, that one serves on."""
    registry = simulated("a", "b", pool={**ENGINE, "workers_per_device": 1})
    prism = serve_prism({**registry, "scheduler": {"quantum": 0, "drain_after": 0}})
    async with session(prism) as client, streaming(client, "a", ENDLESS):
        with hanging_command(prism, "b", worker):
            await asyncio.to_thread(prism.wait_until, lambda s: s.workers[0].state == "draining", "a is drained")
        await asyncio.to_thread(prism.wait_until, lambda s: s.workers[0].state == "active", "a serves on")
    await asyncio.to_thread(prism.wait_until, lambda s: s.in_flight == 0, "the stream is gone")
    assert prism.model("b").state == "on disk"


# --- making models' first requests ----------------------------------------------------------------------------


def test_warm_activates_every_model_and_leaves_those_active_that_were(prism: Prism) -> None:
    assert prism.command("activate", model="a").ok
    said: list[str] = []
    assert warm(prism.admin_socket, [], said.append)
    assert [line.partition(":")[0] for line in said] == ["pinned", "a", "b"]
    assert all("rehearsed after" in line for line in said)
    assert prism.model("pinned").state == "active"
    assert prism.model("b").state != "active"


def test_warm_names_the_models_that_it_does_not_know(prism: Prism) -> None:
    with pytest.raises(OperatorError, match="there is no model c, d; there are pinned, a, b"):
        warm(prism.admin_socket, ["a", "c", "d"], lambda line: None)
