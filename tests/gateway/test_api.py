"""The HTTP API: what clients get for what they send. The engine is simulated, all else is real."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.rig.asking import (
    CHAT,
    COMPLETIONS,
    ENDLESS,
    HELLO,
    ask,
    ask_on,
    ask_raw,
    chat,
    complete,
    connect,
    events_of,
    session,
    streaming,
)
from tests.rig.serving import Prism, ServePrism, simulated

MAX_BODY = 100_000
NAMES = ("alpha", "beta", "org/gamma-7b")


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Three models on two workers."""
    registry = simulated(
        *NAMES,
        pool={"engine_args": {"tpot": "1ms", "activation": "10ms"}},
        gateway={"limits": {"max_body": MAX_BODY}},
    )
    prism = Prism.start(tmp_path_factory.mktemp("api") / "gateway", registry)
    prism.wait_for_workers()
    yield prism
    prism.close()


# --- models ---------------------------------------------------------------------------------------------------


def test_models_are_listed_in_the_order_of_the_registry(prism: Prism) -> None:
    listed = ask(prism, "GET", "/v1/models").json
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == list(NAMES)
    assert {card["object"] for card in listed["data"]} == {"model"}


def test_one_model_is_described_and_its_name_may_hold_a_slash(prism: Prism) -> None:
    card = ask(prism, "GET", "/v1/models/org/gamma-7b").json
    assert card == ask(prism, "GET", "/v1/models/org%2Fgamma-7b").json
    assert (card["id"], card["owned_by"], card["slo"]) == ("org/gamma-7b", "prism", {"ttft_s": 10.0, "tpot_s": 0.2})


@pytest.mark.parametrize("name", ["delta", "ALPHA", "alpha/", "%C3%A9", "%ff%fe"])
def test_a_model_that_is_not_in_the_registry_has_no_description(prism: Prism, name: str) -> None:
    answer = ask(prism, "GET", f"/v1/models/{name}")
    assert answer.status == 404
    assert (answer.error["param"], answer.error["code"]) == ("model", "model_not_found")


# --- answers --------------------------------------------------------------------------------------------------


def test_a_chat_is_answered_whole(prism: Prism) -> None:
    answer = chat(prism, "alpha", max_tokens=4)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json["object"] == "chat.completion"
    assert answer.json["model"] == "alpha"
    (choice,) = answer.json["choices"]
    assert choice["message"] == {"role": "assistant", "content": " the gate opens and", "refusal": None}
    assert choice["finish_reason"] == "length"
    assert answer.json["usage"]["completion_tokens"] == 4


def test_a_chat_is_streamed_as_server_sent_events(prism: Prism) -> None:
    answer = chat(prism, "alpha", max_tokens=4, stream=True)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream")
    assert answer.headers["Cache-Control"] == "no-cache"
    first, *pieces, last = (event["choices"][0] for event in answer.events)
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert [piece["delta"]["content"] for piece in pieces] == [" the", " gate", " opens", " and"]
    assert (last["delta"], last["finish_reason"]) == ({}, "length")
    assert len({event["id"] for event in answer.events}) == 1


def test_a_completion_is_answered_whole_and_streamed(prism: Prism) -> None:
    whole = complete(prism, "beta", max_tokens=3)
    assert whole.json["object"] == "text_completion"
    assert whole.json["choices"][0]["text"] == " the gate opens"
    streamed = complete(prism, "beta", max_tokens=3, stream=True)
    assert "".join(event["choices"][0]["text"] for event in streamed.events) == " the gate opens"


def test_a_stream_tells_its_usage_only_when_asked(prism: Prism) -> None:
    asked = chat(prism, "alpha", max_tokens=4, stream=True, stream_options={"include_usage": True}).events
    assert [event["usage"] for event in asked[:-1]] == [None] * (len(asked) - 1)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"] == chat(prism, "alpha", max_tokens=4).json["usage"]
    assert all("usage" not in event for event in chat(prism, "alpha", max_tokens=4, stream=True).events)


def test_several_choices_are_answered_whole_and_streamed(prism: Prism) -> None:
    whole = chat(prism, "alpha", max_tokens=2, n=3).json
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert whole["usage"]["completion_tokens"] == 6
    texts = {0: "", 1: "", 2: ""}
    for event in chat(prism, "alpha", max_tokens=2, n=3, stream=True).events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert set(texts.values()) == {" the gate"}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_which_worker_gave_it_and_on_which_device(prism: Prism, stream: bool) -> None:
    prism.command("activate", model="alpha")
    serving = str(prism.model("alpha").workers[0])
    headers = chat(prism, "alpha", stream=stream).headers
    assert (headers["X-Prism-Worker"], headers["X-Prism-Device"]) == (serving, "cpu")


def test_every_answer_has_an_id_of_its_own(prism: Prism) -> None:
    assert len({chat(prism, "alpha", max_tokens=1).json["id"] for _ in range(5)}) == 5


def test_text_of_any_language_reaches_the_engine(prism: Prism) -> None:
    """The simulated engine counts a token for every four characters: of the text, not of its bytes or escapes."""
    text = "Prismen zerlegen Licht in Farben: 虹 🌈" * 100
    raw = json.dumps({"model": "alpha", "messages": [{"role": "user", "content": text}]}, ensure_ascii=False).encode()
    escaped = json.dumps({"model": "alpha", "messages": [{"role": "user", "content": text}]}).encode()
    assert raw != escaped
    for body in (raw, escaped):
        assert ask(prism, "POST", CHAT, body).json["usage"]["prompt_tokens"] == 1 + len(text) // 4


def test_a_body_may_be_compressed_and_have_no_content_type(prism: Prism) -> None:
    body = gzip.compress(json.dumps({"model": "alpha", "messages": HELLO, "max_tokens": 1}).encode())
    assert ask(prism, "POST", CHAT, body, {"Content-Encoding": "gzip"}).status == 200


def test_parameters_at_their_neutral_value_change_nothing(prism: Prism) -> None:
    answer = chat(
        prism, "alpha", max_completion_tokens=2, temperature=0, top_p=1, seed=1, stop=None, frequency_penalty=0,
        logprobs=False, tools=[], response_format={"type": "text"}, user="me", metadata={"a": "b"},
    )  # fmt: skip
    assert answer.status == 200
    assert answer.json["usage"]["completion_tokens"] == 2


# --- refusals: at once, and in OpenAI's form ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("frequency_penalty", 0.5),
        ("temperature", 3),
        ("top_p", 0),
        ("n", 0),
        ("max_tokens", "many"),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("no_such_parameter", 1),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_cannot_do_is_refused_by_name(prism: Prism, param: str, value: Any, stream: bool) -> None:
    answer = chat(prism, "alpha", stream=stream, **{param: value})
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["param"] == param
    assert param in answer.error["message"]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"model=alpha", None, "invalid_json"),
        (b"\xff\xfe", None, "invalid_json"),
        (b'{"model": "\xff"}', None, "invalid_json"),
        (b'{"model": "\\ud800"}', None, "invalid_json"),
        (b'{"model": "alpha"} {}', None, "invalid_json"),
        (b'{"a": ' + b"[" * 10_000 + b"]" * 10_000 + b', "model": "alpha"}', None, "invalid_json"),
        (b'{"a": ' + b"[" * 40_000 + b"]" * 40_000 + b', "model": "alpha"}', None, "body_too_complex"),
        (b"[]", None, "invalid_json"),
        (b'"alpha"', None, "invalid_json"),
        (b"null", None, "invalid_json"),
        (b"{}", "model", "missing_required_parameter"),
        (b'{"model": null}', "model", "invalid_type"),
        (b'{"model": 7}', "model", "invalid_type"),
        (b'{"model": ["alpha"]}', "model", "invalid_type"),
        (b'{"model": "alpha"}', "messages", "missing_required_parameter"),
        (b'{"model": "alpha", "messages": []}', "messages", "invalid_type"),
    ],
)
def test_a_body_that_is_no_request_is_refused(prism: Prism, body: bytes, param: str | None, code: str) -> None:
    answer = ask(prism, "POST", CHAT, body)
    assert answer.status == 400
    assert (answer.error["param"], answer.error["code"]) == (param, code)


def test_a_body_that_is_not_compressed_as_it_says_is_refused(prism: Prism) -> None:
    answer = ask(prism, "POST", CHAT, b'{"model": "alpha"}', {"Content-Encoding": "gzip"})
    assert (answer.status, answer.error["code"]) == (400, "invalid_body")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_unknown_model_is_not_found(prism: Prism, path: str) -> None:
    answer = ask(prism, "POST", path, {"model": "delta"})
    assert answer.status == 404
    assert (answer.error["param"], answer.error["code"]) == ("model", "model_not_found")
    assert "delta" in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v2/models"),
        ("GET", "/v1/models/"),
        ("GET", "//v1/models"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1//chat/completions"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/chat/completions/../completions/x"),
    ],
)
def test_there_is_nothing_at_other_paths(prism: Prism, method: str, path: str) -> None:
    answer = ask(prism, method, path, {"model": "alpha"} if method == "POST" else None)
    assert (answer.status, answer.error["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", CHAT, "POST"), ("PUT", COMPLETIONS, "POST"), ("POST", "/v1/models", "GET, HEAD")],
)
def test_a_wrong_method_is_told_the_right_one(prism: Prism, method: str, path: str, allowed: str) -> None:
    answer = ask(prism, method, path)
    assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
    assert answer.headers["Allow"] == allowed


def test_a_body_as_large_as_allowed_is_taken(prism: Prism) -> None:
    body = json.dumps({"model": "alpha", "messages": HELLO, "max_tokens": 1}).encode()
    assert ask(prism, "POST", CHAT, body.ljust(MAX_BODY)).status == 200


async def test_a_body_that_will_be_too_large_is_refused_before_it_is_sent(prism: Prism) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {MAX_BODY + 1}\r\n\r\n"
    answer = await ask_raw(prism, head.encode(), until=b'"code":"body_too_large"}}')
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert str(MAX_BODY).encode() in answer


async def test_a_body_of_unknown_length_is_refused_once_it_is_too_large(prism: Prism) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"%x\r\n" % (MAX_BODY + 1) + b" " * (MAX_BODY + 1) + b"\r\n0\r\n\r\n"
    answer = await ask_raw(prism, head.encode() + body)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_is_too_large_unpacked_is_refused(prism: Prism) -> None:
    body = gzip.compress(b" " * (MAX_BODY + 1))
    answer = ask(prism, "POST", CHAT, body, {"Content-Encoding": "gzip"})
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")


async def test_what_is_not_http_is_refused(prism: Prism) -> None:
    assert b" 400 Bad Request\r\n" in await ask_raw(prism, b"HELLO GATEWAY\r\n\r\n")


# --- connections ----------------------------------------------------------------------------------------------


def test_a_client_that_is_gone_after_the_last_event_is_no_error(prism: Prism) -> None:
    body = json.dumps({"model": "alpha", "messages": HELLO, "max_tokens": 2, "stream": True}).encode()
    request = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    url = urlsplit(prism.url)
    for _ in range(20):
        with socket.create_connection((url.hostname or "", url.port or 0)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close is a reset
            connection.sendall(request)
            got = b""
            while b"[DONE]" not in got:
                got += connection.recv(4096)
    assert not [line for line in prism.log if "Traceback" in line]


async def test_a_client_of_http_1_0_gets_a_stream_too(prism: Prism) -> None:
    body = json.dumps({"model": "alpha", "messages": HELLO, "max_tokens": 2, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
    answer = await ask_raw(prism, head.encode() + body)
    headers, _, stream = answer.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.0 200 ")
    assert b"chunked" not in headers.lower()
    *events, done = events_of(stream)
    assert done == "[DONE]"
    texts = [json.loads(event)["choices"][0]["delta"].get("content", "") for event in events]
    assert "".join(texts) == " the gate"


def test_a_connection_serves_on_after_streams_and_errors(prism: Prism) -> None:
    request = {"model": "alpha", "messages": HELLO, "max_tokens": 2}
    connection = connect(prism)
    ask_on(connection, "GET", "/health")
    socket = connection.sock
    for body, status in [
        ({**request, "stream": True}, 200),
        (request, 200),
        ({**request, "stream": True}, 200),
        ({**request, "tools": [{}]}, 400),
        ({"model": "delta"}, 404),
        (b"{", 400),
        (request, 200),
    ]:
        assert ask_on(connection, "POST", CHAT, body).status == status
    assert ask_on(connection, "GET", "/nowhere").status == 404
    assert ask_on(connection, "GET", "/health").status == 200
    assert connection.sock is socket, "the gateway closed the connection in between"
    connection.close()


async def test_many_streams_at_a_time_each_get_their_own_events(prism: Prism) -> None:
    lengths = range(1, 41)

    async def stream(tokens: int) -> int:
        body = {"model": "alpha", "messages": HELLO, "stream": True, "max_tokens": tokens}
        async with client.post(CHAT, json=body) as response:
            *events, done = events_of(await response.read())
            assert done == "[DONE]"
            assert len({json.loads(event)["id"] for event in events}) == 1
            return len(events) - 2

    async with session(prism) as client:
        assert await asyncio.gather(*map(stream, lengths)) == list(lengths)


async def test_a_client_that_goes_away_frees_its_place(prism: Prism) -> None:
    async with session(prism) as client, streaming(client, "alpha", ENDLESS):
        assert prism.model("alpha").running == 1
    prism.wait_until(lambda status: status.in_flight == 0, "the abandoned request is gone")
    assert prism.model("alpha").running == 0


# --- more models than workers ---------------------------------------------------------------------------------


async def test_three_models_on_two_workers_are_all_served_and_none_is_told_to_try_again(
    serve_prism: ServePrism,
) -> None:
    prism = serve_prism(simulated("a", "b", "c", pool={"engine_args": {"tpot": 0, "activation": "10ms"}}))

    async def ask_for(model: str, stream: bool) -> tuple[int, str]:
        body = {"model": model, "messages": HELLO, "max_tokens": 2, "stream": stream}
        async with client.post(CHAT, json=body) as response:
            return response.status, "".join(await response.text())

    async with session(prism) as client:
        wanted = [(model, stream) for _ in range(5) for model in "abc" for stream in (False, True)]
        answers = await asyncio.gather(*(ask_for(*want) for want in wanted))
    assert [status for status, _ in answers] == [200] * len(wanted)
    assert all(f'"model":"{model}"' in text for (model, _), (_, text) in zip(wanted, answers, strict=True))
    status = prism.status()
    assert len(status.workers) == 2
    assert any("evicted" in decision.text for decision in status.decisions)


# --- health ---------------------------------------------------------------------------------------------------


def test_a_gateway_is_healthy_and_ready(prism: Prism) -> None:
    assert ask(prism, "GET", "/health").json == {"status": "ok"}
    ready = ask(prism, "GET", "/ready")
    assert (ready.status, ready.json) == (200, {"ready": True, "reasons": []})


def test_a_gateway_is_not_ready_before_what_is_pinned_is_active(serve_prism: ServePrism) -> None:
    registry = simulated("a", pool={"engine_args": {"activation": "1h"}})
    registry["models"] = [{"name": "kept", "pinned": True}, {"name": "other"}]
    prism = serve_prism(registry)
    ready = ask(prism, "GET", "/ready")
    assert ready.status == 503
    assert "the pinned model kept is not active yet" in ready.json["reasons"]
    assert ask(prism, "GET", "/health").status == 200
