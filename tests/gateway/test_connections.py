"""What a client's connection may hold: time, memory and file descriptors. Real sockets; the engine is simulated."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import yaml

from gateway.report import Status
from tests.rig.asking import CHAT, ENDLESS, HELLO, Answer, ask, chat
from tests.rig.serving import PATIENCE, Prism, ServePrism, simulated

MIB = 2**20
SOON = "200ms"
"""A limit that a test waits for."""
FILES = 128
"""Open files of a gateway that is to be at their limit."""


def limited(*, pool: dict[str, Any] | None = None, **limits: object) -> dict[str, object]:
    engine = {"engine_args": {"tpot": "1ms", "activation": "10ms"}, **(pool or {})}
    return simulated("a", pool=engine, gateway={"limits": limits})


class Raw:
    """A connection of which a test decides every byte."""

    def __init__(self, prism: Prism) -> None:
        where = urlsplit(prism.url)
        assert where.hostname is not None
        self.socket = socket.create_connection((where.hostname, where.port), timeout=PATIENCE)

    def send(self, data: bytes) -> Raw:
        self.socket.sendall(data)
        return self

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and body of the answer."""
        response = HTTPResponse(self.socket)
        with self.socket, response:
            response.begin()
            return response.status, json.loads(response.read())

    def rest(self) -> bytes:
        """What comes until the connection is closed."""
        found = b""
        with self.socket:
            while piece := self.socket.recv(65536):
                found += piece
        return found

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def request_head(length: int, *more: str) -> bytes:
    lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def chat_body(size: int = 0) -> bytes:
    """A chat of `size` bytes at least, most of it spaces."""
    return json.dumps({"model": "a", "messages": HELLO, "max_tokens": 1}).encode().ljust(size)


# time


@pytest.mark.parametrize("begun", [b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Padding: "])
def test_headers_that_do_not_end_are_answered_with_408(serve_prism: ServePrism, begun: bytes) -> None:
    prism = serve_prism(limited(header_timeout=SOON))
    status, body = Raw(prism).send(begun).answer()
    assert (status, body["error"]["code"]) == (408, "header_timeout")


def test_so_are_those_of_a_later_request_that_come_byte_by_byte(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited(header_timeout=SOON))
    connection = Raw(prism).send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.socket.recv(65536).startswith(b"HTTP/1.1 200")
    connection.socket.settimeout(0.02)
    connection.send(b"GET /")
    while not is_answered(connection):
        connection.send(b"x")
    status, body = connection.answer()
    assert (status, body["error"]["code"]) == (408, "header_timeout")


def is_answered(connection: Raw) -> bool:
    try:
        return bool(connection.socket.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False


def test_a_connection_without_a_request_is_closed(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited(idle_timeout=SOON))
    assert Raw(prism).rest() == b""
    used = Raw(prism).send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert used.rest().startswith(b"HTTP/1.1 200")


def test_a_request_that_takes_longer_than_these_limits_is_answered(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited(pool={"engine_args": {"ttft": "1s"}}, header_timeout=SOON, idle_timeout=SOON))
    assert chat(prism, "a", max_tokens=1).status == 200


def test_a_body_that_pauses_for_too_long_is_answered_with_408(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited(body_timeout=SOON))
    status, body = Raw(prism).send(request_head(1000) + b"{").answer()
    assert (status, body["error"]["code"]) == (408, "body_timeout")


def test_a_body_that_goes_on_coming_may_take_longer_in_all(serve_prism: ServePrism) -> None:
    """Each byte but the last is answered by nothing, so its number is the clock: 40 of them, 25 ms apart."""
    prism = serve_prism(limited(body_timeout="500ms"))
    body = chat_body()
    assert len(body) > 40
    with Raw(prism) as connection:
        connection.send(request_head(len(body), "Connection: close") + body[:-40])
        connection.socket.settimeout(0.025)
        for byte in body[-40:]:
            with pytest.raises(TimeoutError):
                connection.socket.recv(1)
            connection.socket.sendall(bytes([byte]))
        connection.socket.settimeout(PATIENCE)
        assert connection.answer()[0] == 200


# memory


def test_bodies_that_nobody_finishes_take_little_memory_and_keep_no_whole_one_out(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited())
    prism.wait_for_workers()
    gateway = psutil.Process(prism.process.pid)
    before = gateway.memory_info().rss
    with ExitStack() as held:
        for _ in range(60):
            held.enter_context(Raw(prism)).send(request_head(16_000_000) + b"x" * 15_900_000)
        assert gateway.memory_info().rss - before < 200 * MIB
        answer = ask(prism, "POST", CHAT, chat_body(16 * MIB))
        assert answer.status == 200
        assert ask(prism, "GET", "/health").status == 200
    told = [line for line in prism.log if "unfinished bodies gave way" in line]
    assert 1 <= len(told) < 10


def test_who_gave_way_hears_of_it(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited(max_body="1MiB", unfinished_bodies="1MiB"))
    stalled = Raw(prism).send(request_head(MIB) + b"x" * (MIB - 1))
    assert ask(prism, "POST", CHAT, chat_body(MIB)).status == 200
    status, body = stalled.answer()
    assert (status, body["error"]["code"]) == (503, "too_many_bodies")


def test_bodies_without_a_length_are_bounded_too(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited(max_body="1MiB", unfinished_bodies="1MiB"))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    stalled = Raw(prism).send(head + b"%x\r\n" % (MIB - 1) + b"x" * (MIB - 1))
    assert ask(prism, "POST", CHAT, chat_body(MIB)).status == 200
    assert stalled.answer()[0] == 503
    too_large = Raw(prism).send(head + b"%x\r\n" % (MIB + 1) + b"x" * (MIB + 1) + b"\r\n0\r\n\r\n")
    assert too_large.answer()[0] == 413


def test_a_client_that_leaves_in_the_middle_of_its_body_leaves_nothing(serve_prism: ServePrism) -> None:
    prism = serve_prism(limited(max_body="1MiB", unfinished_bodies="1MiB"))
    for _ in range(5):
        with Raw(prism) as connection:
            connection.send(request_head(MIB) + b"x" * (MIB - 1))
    assert ask(prism, "POST", CHAT, chat_body(MIB)).status == 200


# file descriptors


@contextmanager
def few_files(folder: Path, registry: dict[str, Any], files: int = FILES) -> Iterator[Prism]:
    folder.mkdir()
    gateway = {"port": 0, "admin_socket": str(folder / "admin.sock"), **registry.get("gateway", {})}
    file = folder / "registry.yaml"
    file.write_text(yaml.safe_dump({**registry, "gateway": gateway, "scheduler": {"policy": "lru"}}))
    command = [sys.executable, "-m", "gateway.cli", "serve", str(file)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files)),
    )  # fmt: skip
    prism = Prism(process, folder)
    try:
        prism.url = prism.wait_for_log("listening on ").partition("listening on ")[2]
        yield prism
    finally:
        prism.close()


def test_the_limit_of_open_files_is_raised_as_far_as_it_may(short_path: Path) -> None:
    with few_files(short_path / "gateway", limited()) as prism:
        assert psutil.Process(prism.process.pid).rlimit(psutil.RLIMIT_NOFILE) == (FILES, FILES)


def test_idle_connections_give_way_to_clients_that_ask(short_path: Path) -> None:
    with few_files(short_path / "gateway", limited()) as prism, ExitStack() as held:
        prism.wait_for_workers()
        idle = [held.enter_context(Raw(prism)) for _ in range(3 * FILES)]
        retry(lambda: chat(prism, "a", max_tokens=1))
        assert idle[0].answer()[1]["error"]["code"] == "too_many_connections"
        for _ in range(5):
            assert chat(prism, "a", max_tokens=1).status == 200
        replace_a_worker(prism)
        told = [line for line in prism.log if "idle connections gave way" in line]
        assert 1 <= len(told) < 10


def test_so_do_connections_that_are_kept_for_later(short_path: Path) -> None:
    with few_files(short_path / "gateway", limited()) as prism, ExitStack() as held:
        for _ in range(FILES):
            held.enter_context(Raw(prism)).send(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").socket.recv(65536)
        retry(lambda: chat(prism, "a", max_tokens=1))


def test_where_all_are_busy_new_clients_are_refused_and_health_workers_and_admin_go_on(short_path: Path) -> None:
    registry = limited(pool={"max_running": 4, "engine_args": {"tpot": "10ms"}})
    body = json.dumps({"model": "a", "messages": HELLO, "max_tokens": ENDLESS, "stream": True}).encode()
    with few_files(short_path / "gateway", registry) as prism, ExitStack() as held:
        prism.wait_for_workers()
        for _ in range(2 * FILES):
            held.enter_context(Raw(prism)).send(request_head(len(body)) + body)
        refused = chat(prism, "a", max_tokens=1)
        assert (refused.status, refused.error["code"]) == (503, "too_many_connections")
        assert refused.headers["Retry-After"] == "1"
        assert ask(prism, "GET", "/health").status == 200
        assert ask(prism, "GET", "/metrics").status == 200
        assert prism.command("models").ok
        replace_a_worker(prism)
        told = [line for line in prism.log if "new ones were refused" in line]
        assert 1 <= len(told) < 10


def retry(asking: Callable[[], Answer]) -> None:
    """As long as the answer says so."""
    while (answer := asking()).status != 200:
        assert (answer.status, answer.error["code"]) == (503, "too_many_connections")
        time.sleep(float(answer.headers["Retry-After"]))


def replace_a_worker(prism: Prism) -> None:
    pid = prism.pid(0)
    os.kill(pid, signal.SIGKILL)

    def is_new(status: Status) -> bool:
        worker = status.workers[0]
        return worker.pid not in (None, pid) and worker.state != "starting"

    prism.wait_until(is_new, "the worker is replaced")
