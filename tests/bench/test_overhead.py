"""The overhead benchmark: its client counts right, its servers give the same answer, and nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bench.errors import BadReply
from bench.goals import comparison_table, goal_table
from bench.overhead import probes, targets
from bench.overhead.comparison import OverheadEffort, OverheadRun, same_answer
from bench.overhead.mock_server import make_app
from bench.overhead.targets import Target, Timing, plain
from bench.subjects.processes import running
from bench.subjects.rawclient import Address, EventCount, RawEventStream, RawReply, cut_reply
from enginepool.engines.simulated import SimulatedEngine
from enginepool.messages import Chunk, Done, Head, ModelSpec, Submit
from enginepool.messages import Reply as WorkerReply
from simulator.errors import StudyError

TINY = OverheadEffort(
    rounds=2, requests=3, slow_requests=3, throughput_rounds=1, throughput_seconds=0.2, streams=5, window=0.3
)
EXPECTED = b'" the gate opens and a warm model answers"'


# --- the client -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "received",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nServer: x\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nServer: x\r\ncontent-length:4\r\n\r\nbody",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbod\r\n1;x=y\r\ny\r\n0\r\n\r\n",
    ],
)
def test_a_reply_is_cut_out_once_all_of_it_is_there(received: bytes) -> None:
    assert cut_reply(received) == RawReply(200, b"body")
    assert all(cut_reply(received[:length]) is None for length in range(len(received)))


@pytest.mark.parametrize("received", [b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n", b"SSH-2.0 hello\r\n\r\n"])
def test_what_is_not_a_reply_is_refused(received: bytes) -> None:
    with pytest.raises(BadReply):
        cut_reply(received)


class NoNetwork(asyncio.Transport):
    def write(self, data: Any) -> None:
        pass


@pytest.mark.parametrize("size", range(1, 40))
async def test_events_are_counted_wherever_the_network_cuts_them(size: int) -> None:
    count = EventCount(streams=1)
    stream = RawEventStream(b"", count)
    stream.connection_made(NoNetwork())
    event = b'21\r\ndata: {"word": "data"}\n\n\r\n'
    received = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + 7 * event
    pieces = [received[:48], *(received[at : at + size] for at in range(48, len(received), size))]

    for piece in pieces:
        stream.data_received(piece)

    assert (count.events, count.begun, count.failed) == (7, 1, 0)


async def test_a_stream_that_is_refused_or_ends_has_failed() -> None:
    count = EventCount(streams=2)
    refused, ended = RawEventStream(b"", count), RawEventStream(b"", count)
    for stream in (refused, ended):
        stream.connection_made(NoNetwork())

    refused.data_received(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")
    ended.data_received(b"HTTP/1.1 200 OK\r\n\r\ndata: x\n\n")
    assert count.failed == 1

    ended.data_received(b"0\r\n\r\n")
    ended.connection_lost(None)
    assert count.failed == 2


# --- the servers ----------------------------------------------------------------------------------------------


def normal(answer: bytes) -> bytes:
    return re.sub(rb'"id":"[^"]*"|"created":\d+', b"", answer)


async def worker_answer(body: bytes) -> bytes:
    """All bytes that Prism's simulated worker sends for a chat."""
    sent: list[bytes] = []
    over = asyncio.Event()

    def emit(message: object) -> None:
        if isinstance(message, Chunk):
            sent.append(message.data)
        elif isinstance(message, WorkerReply):
            sent.append(message.body)
        if isinstance(message, WorkerReply | Done):
            over.set()
        assert not isinstance(message, Head) or message.status == 200

    engine = SimulatedEngine(emit, max_running=1, tpot=0.0, activation=0.0)
    await engine.activate(ModelSpec("m", "", "auto", {}), None, None, False)
    engine.submit(Submit(1, "/v1/chat/completions", body, 0.0))
    await over.wait()
    await engine.close()
    return b"".join(sent)


@pytest.mark.parametrize("stream", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
async def test_the_plain_server_answers_as_the_simulated_worker_does(stream: dict[str, object]) -> None:
    messages = [{"role": "user", "content": "hello there"}]
    body = json.dumps({"model": "m", "messages": messages, "max_tokens": 20, **stream}).encode()
    async with TestServer(make_app(("m",), tpot=0.0)) as server:
        connection = await asyncio.open_connection(server.host, server.port)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        connection[1].write(head.encode() + body)
        received = b""
        while (reply := cut_reply(received)) is None:
            received += await connection[0].read(65536)
        connection[1].close()
        await connection[1].wait_closed()

    assert normal(reply.body) == normal(await worker_answer(body))


async def test_a_server_that_answers_otherwise_is_not_measured() -> None:
    async def answer(request: web.Request) -> web.Response:
        choice = {"message": {"content": "something else"}, "finish_reason": "length"}
        return web.json_response({"choices": [choice], "usage": {"prompt_tokens": 14, "completion_tokens": 8}})

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server, plain(Timing()) as direct:
        other = Target("other", Address(str(server.host), int(server.port or 0)), direct.server)
        with pytest.raises(StudyError, match="do not give the same answer"):
            await same_answer([direct, other])


# --- the measurements -----------------------------------------------------------------------------------------


async def test_every_wrong_answer_counts_as_a_failure() -> None:
    async with plain(Timing()) as target:
        right = await probes.latency([target], {"direct": 5}, 2, EXPECTED, lambda line: None)
        wrong = await probes.latency([target], {"direct": 5}, 2, b'"something else"', lambda line: None)
        loaded = await probes.throughput(target, 4, 0.2, b'"something else"')

    assert (len(right["direct"].seconds), right["direct"].failed) == (10, 0)
    assert wrong["direct"].seconds == []
    assert wrong["direct"].failed >= 10
    assert loaded.failed > 0


async def test_streams_are_counted_in_a_steady_window() -> None:
    async with plain(Timing(tpot=0.01)) as target:
        found = await probes.streaming(target, 10, 100, 0.5)

    assert (found.begun, found.failed, found.offered_per_s) == (10, 0, 1000)
    assert found.delivered_per_s > 0
    assert 0 < 10 * found.slowest_per_s <= found.delivered_per_s + 1e-6


async def test_a_server_that_hangs_up_is_an_error_and_no_figure() -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/chat/completions", hang_up)
    async with TestServer(app) as server, plain(Timing()) as other:
        target = Target("rude", Address(str(server.host), int(server.port or 0)), other.server)
        with pytest.raises(StudyError, match="rude hung up"):
            await probes.latency([target], {"rude": 1}, 1, EXPECTED, lambda line: None)
        async with probes.closed_loop(target, 2, EXPECTED) as loop:
            with pytest.raises(StudyError, match="closed every connection"):
                await loop.until(10)


async def test_memory_growth_is_read_between_two_requests() -> None:
    async with plain(Timing()) as target:
        grown = await probes.soak(target, 4, 50, 200, EXPECTED, lambda line: None)

    assert abs(grown) < 2**28


# --- whole runs -----------------------------------------------------------------------------------------------


async def test_replies_of_prism_are_compared_with_the_plain_server() -> None:
    run = OverheadRun(TINY, [], soak=False)
    await run.measure_replies()
    figures = run.figures()

    assert figures["failed"] == 0
    assert figures["requests_per_s"] > 0
    assert figures["added_p50_ms"] is not None
    assert figures["direct"]["p99_ms"] > 0
    assert figures["peers"] == {}
    assert figures["machine"]["cpus"] >= 1
    json.dumps(figures)


async def test_a_peer_that_does_not_start_is_missing_and_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(targets, "PEERS_BIN", tmp_path)
    run = OverheadRun(TINY, ["litellm"], soak=False)
    async with run.serving(Timing()) as servers:
        assert [server.name for server in servers] == ["direct", "prism"]
    run.prism["added_p50_ms"] = 0.1
    figures = run.figures()

    assert "cannot be started" in figures["peers"]["litellm"]["missing"]
    assert "nothing is proved about it" in comparison_table(figures)
    line = next(line for line in goal_table(figures).splitlines() if "LiteLLM" in line)
    assert line.endswith("not measured")


def test_a_quick_run_does_not_judge_what_takes_a_thousand_streams() -> None:
    figures = {"events_per_s": 9_900.0, "streams": 100, "peers": {}}

    assert "MISSED" not in goal_table(figures)


def test_the_table_says_which_goals_are_reached() -> None:
    measured = {"added_p50_ms": 0.2, "added_p99_ms": 3.0, "requests_per_s": 5000.0, "events_per_s": 60_000.0}
    peers = {"sglang-router": {"added_p50_ms": 0.4, "requests_per_s": 6000.0}, "litellm": {"added_p50_ms": 1.6}}
    lines = goal_table({**measured, "peers": peers, "streams": 1000}).splitlines()

    verdicts = [line.split()[-1] for line in lines]
    assert verdicts == ["reached", "MISSED", "MISSED", "reached", "reached", "reached", "measured", "measured"]


# --- what it starts -------------------------------------------------------------------------------------------


async def fail_while_running(folder: Path, pids: list[int]) -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)"
    async with running("child", [sys.executable, "-c", script], folder) as server:
        pids.append(server.pid)
        raise RuntimeError("the measurement failed")


async def test_a_server_and_its_children_are_stopped_when_a_measurement_fails(tmp_path: Path) -> None:
    pids: list[int] = []
    with pytest.raises(RuntimeError):
        await fail_while_running(tmp_path, pids)

    assert not psutil.pid_exists(pids[0])


async def test_a_server_that_ends_is_reported_with_its_last_words(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    async with running("child", [sys.executable, "-c", "print('no such file'); exit(3)"], tmp_path) as server:
        with pytest.raises(StudyError, match=r"child ended with exit code 3; its last output:\nno such file"):
            await server.until_ready(never, 60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_run_that_is_stopped_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "bench.overhead", "--no-peers", "--quick", "--json", str(figures)]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    while b"requests per second" not in await process.stderr.readline():
        assert process.returncode is None
    servers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    said = await process.stderr.read()

    assert await process.wait() == 130
    assert b"no figures" in said
    assert len(servers) >= 3
    assert not any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers)
    assert not figures.exists()
