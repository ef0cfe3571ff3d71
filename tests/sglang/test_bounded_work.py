"""The engine `sglang` beside requests that are too much: they are refused, the worker and its streams go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from gateway.demo_models import CONTEXT
from tests.rig.asking import (
    CHAT,
    COMPLETIONS,
    HELLO,
    Answer,
    ask,
    chat,
    complete,
    session,
    streaming,
)
from tests.rig.serving import Prism
from tests.rig.sglang_models import NEEDS_SGLANG

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]

MODEL = "llama-tiny"
MANY = CONTEXT - 100
"""Tokens of an answer that is still under way when its test is over."""
LARGE = 12 * 2**20
"""Bytes of a body."""
MOST = 20
"""Prompts in a request, and logprobs of its prompt."""
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
"""A chat template; jinja's sandbox allows no longer range."""
FOR_EVER = "start: A\nA: /.*a.{18}/ & /.*b.{17}/ & ~/.*c.{16}/"
"""A grammar that llguidance compiles for minutes."""


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory, sglang_models: dict[str, Path]) -> Iterator[dict[bool, Prism]]:
    """By whether clients may send templates, and grammars that take an hour. Silence counts early."""
    models = [{"name": MODEL, "path": str(sglang_models[MODEL]), "dtype": "float32"}]
    limits = {"preparation": "3s", "prompts": MOST, "logprobs": MOST}
    started = {}
    for own in (False, True):
        pool = {
            "engine": "sglang",
            "kv_memory": "64MiB",
            "workers_per_device": 1,
            "heartbeat": 0.2,
            "silence": "2s",
            "limits": {**limits, "own_templates": own, "grammar_time": "1h" if own else "1s"},
        }
        folder = tmp_path_factory.mktemp("bounded") / "gateway"
        started[own] = Prism.start(folder, {"pool": pool, "models": models})
        assert complete(started[own], MODEL, max_tokens=1).status == 200
    yield started
    for prism in started.values():
        prism.close()


@pytest.fixture
def prism(gateways: dict[bool, Prism]) -> Prism:
    return gateways[False]


@pytest.fixture
def open_prism(gateways: dict[bool, Prism]) -> Prism:
    """Its clients may send templates of their own, and grammars that take an hour."""
    return gateways[True]


async def refused_beside_a_stream(prism: Prism, path: str, body: bytes) -> Answer:
    """The stream must have gone on, in the same worker."""
    async with session(prism) as client, streaming(client, MODEL, MANY, ignore_eos=True) as stream:
        before = prism.pid(0)
        asking = asyncio.create_task(asyncio.to_thread(ask, prism, "POST", path, body))
        events = 0
        while not asking.done():
            event = await stream.readuntil(b"\n\n")
            assert event
            assert not event.startswith(b'data: {"error"')
            events += 1
        assert events > 1
    assert prism.pid(0) == before
    return asking.result()


TOO_LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "a prompt": (COMPLETIONS, {"prompt": "word " * (LARGE // 5)}),
    "a prompt of few bytes per token": (COMPLETIONS, {"prompt": "word " * (CONTEXT * 40)}),
    "a message": (CHAT, {"messages": [{"role": "user", "content": "word " * (LARGE // 5)}]}),
    "many messages": (CHAT, {"messages": [{"role": "user", "content": "a"}] * 6000}),
    "tokens": (COMPLETIONS, {"prompt": [1] * 900_000}),
    "prompts": (COMPLETIONS, {"prompt": ["a"] * 10_000}),
    "text of its own": ("/generate", {"text": "word " * (LARGE // 5)}),
    "an input": ("/v1/responses", {"input": "word " * (LARGE // 5)}),
}


@pytest.mark.parametrize("kind", TOO_LARGE)
async def test_what_is_too_large_is_refused_and_streams_go_on(prism: Prism, kind: str) -> None:
    path, fields = TOO_LARGE[kind]
    answer = await refused_beside_a_stream(prism, path, json.dumps({"model": MODEL, **fields}).encode())
    assert answer.status == 400, answer.body


def test_a_large_request_is_answered_as_any_other(prism: Prism) -> None:
    """What is large of it means nothing; streamed and whole."""
    body = {"messages": HELLO, "max_tokens": 8, "temperature": 0}
    small = chat(prism, MODEL, **body).json["choices"]
    assert chat(prism, MODEL, **body, user="u" * 100_000).json["choices"] == small
    events = chat(prism, MODEL, **body, stream=True, user="u" * 100_000).events
    said = "".join(event["choices"][0]["delta"].get("content") or "" for event in events)
    assert said == small[0]["message"]["content"]


@pytest.mark.parametrize("where", [{"chat_template": ENDLESS}, {"chat_template_kwargs": {"chat_template": ENDLESS}}])
def test_a_clients_own_template_is_refused(prism: Prism, where: dict[str, Any]) -> None:
    answer = chat(prism, MODEL, **where)
    assert (answer.status, answer.error["param"]) == (400, "chat_template")


def test_a_hidden_template_is_refused_too(prism: Prism) -> None:
    body = json.dumps({"model": MODEL, "messages": HELLO, "chat_template_kwargs": {"chat_template": "a"}})
    answer = ask(prism, "POST", CHAT, body.replace('"chat_template"', '"\\u0063hat_template"').encode())
    assert answer.status == 400
    assert b"chat templates sent by clients are not allowed" in answer.body


def test_a_template_that_is_allowed_is_used(open_prism: Prism) -> None:
    body = {"model": MODEL, "messages": HELLO, "chat_template_kwargs": {"chat_template": "a b c"}, "max_tokens": 1}
    mine, other = (chat(open_prism, **body | more) for more in ({}, {"chat_template_kwargs": {"chat_template": "a"}}))
    assert mine.status == other.status == 200
    assert mine.json["usage"]["prompt_tokens"] > other.json["usage"]["prompt_tokens"]


async def test_a_template_that_never_ends_is_ended(open_prism: Prism) -> None:
    body = {"model": MODEL, "messages": HELLO, "chat_template_kwargs": {"chat_template": ENDLESS}}
    answer = await refused_beside_a_stream(open_prism, CHAT, json.dumps(body).encode())
    assert (answer.status, answer.error["code"]) == (400, "preparation_timeout")


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_takes_for_ever_is_refused_by_name(prism: Prism, stream: bool) -> None:
    answer = ask(prism, "POST", CHAT, {"model": MODEL, "messages": HELLO, "ebnf": FOR_EVER, "stream": stream})
    assert answer.status == 400, answer.body
    assert b"ebnf: compiling this grammar takes longer than 1 s" in answer.body


def trials(prism: Prism) -> list[int]:
    """Processes that try a grammar out and have not ended."""
    found = []
    for process in prism.descendants():
        with contextlib.suppress(psutil.Error):  # it ends meanwhile, or has ended and was not waited for
            if "enginepool.grammar_check" in process.cmdline():
                found.append(process.pid)
    return found


async def test_a_grammars_trial_ends_with_its_client(open_prism: Prism) -> None:
    async with session(open_prism) as client:
        asking = asyncio.ensure_future(client.post(CHAT, json={"model": MODEL, "messages": HELLO, "ebnf": FOR_EVER}))
        await asyncio.to_thread(open_prism.wait_until, lambda _: bool(trials(open_prism)), "the grammar is tried")
        asking.cancel()
        await asyncio.to_thread(open_prism.wait_until, lambda _: not trials(open_prism), "its trial has ended")


def test_several_prompts_are_answered_in_their_order(prism: Prism) -> None:
    """Also where one of them is long, and made tokens of beside the loop."""
    prompts = ["Once", "word " * 4_000, "upon a time"] * (MOST // 3)
    fields = {"max_tokens": 2, "temperature": 0}
    answer = complete(prism, MODEL, prompt=prompts, **fields)
    assert answer.status == 200, answer.body
    texts = [choice["text"] for choice in answer.json["choices"]]
    assert len(texts) == len(prompts)
    assert texts == texts[:3] * (MOST // 3)


def test_too_many_logprobs_of_a_prompt_are_refused(prism: Prism) -> None:
    body = {"text": "Once upon a time", "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 10}
    answer = ask(prism, "POST", "/generate", {"model": MODEL, **body})
    assert answer.status == 400
    assert b"logprobs of the prompt" in answer.body
