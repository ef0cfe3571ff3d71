"""What one client sends costs the others little: too much of it is refused early, and large prompts hold nobody up."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from config.errors import RequestError
from config.registry import Limits
from enginepool.openai.text_bounds import PIECE, TextBounds
from enginepool.own_thread import ThreadEnded, TookTooLong, run_in_own_thread
from gateway.demo_models import CONTEXT, NAMES
from gateway.http.body_shape import check_shape
from tests.rig.asking import ask, chat, complete, session, streaming
from tests.rig.serving import ServePrism, simulated

MANY = CONTEXT - 100
"""Tokens of an answer that is still under way when its test is over."""
LARGE = 12 * 2**20
"""Bytes of a prompt, some three million tokens."""


def loop_for_ever() -> None:
    while True:
        try:
            while True:
                pass
        except Exception:  # as a library may
            continue


async def test_work_aside_ends_when_its_time_is_up() -> None:
    for _ in range(3):
        with pytest.raises(TookTooLong):
            await run_in_own_thread(loop_for_ever, 0.01, asyncio.Event())


async def test_work_aside_ends_with_its_client() -> None:
    gone = asyncio.Event()
    work = asyncio.create_task(run_in_own_thread(loop_for_ever, 3600.0, gone))
    await asyncio.sleep(0)
    gone.set()
    with pytest.raises(ThreadEnded):
        await work


async def test_work_aside_gives_what_it_returns_or_raises() -> None:
    assert await run_in_own_thread(lambda: 3, 3600.0, asyncio.Event()) == 3
    with pytest.raises(ZeroDivisionError):
        await run_in_own_thread(lambda: 1 // 0, 3600.0, asyncio.Event())


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 30,
        b'{"a":' * 11 + b"1" + b"}" * 11,
        b'["\\"", ' + b"[]," * 20 + b"1]",
        b'{"x": "\\\\", "y": [' + b"{}," * 20 + b"1]}",
        b'{"prompt": [' + b"1," * 200 + b"1]}",
        b'{"open": "' + b"[[[" * 20 + b'", "really": [' + b"[]," * 20,
    ],
)
async def test_a_body_of_too_many_values_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError, match="more than") as refused:
        await check_shape(body, Limits(json_values=100, json_containers=10))
    assert (refused.value.status, refused.value.code) == (400, "body_too_complex")


@pytest.mark.parametrize("text", ["{[," * 1000, '"{[,' * 1000, "\\" * 999 + "{[,", "\\" * 1000 + "{[,", '\\"{' * 500])
async def test_signs_within_text_are_no_values(text: str) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}]}).encode()
    await check_shape(body, Limits(json_values=10, json_containers=3))


def test_the_gateway_refuses_a_body_of_too_many_objects(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", gateway={"limits": {"json_containers": 100}}))
    assert chat(prism, "a", max_tokens=1).status == 200
    refused = chat(prism, "a", max_tokens=1, metadata=[[]] * 100)
    assert (refused.status, refused.error["code"]) == (400, "body_too_complex")


class Letters:
    """A tokenizer whose every letter is a token, and that keeps what it was asked for."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}

    def encode(self, text: str) -> str:
        self.seen.append(text)
        return text


def test_what_is_far_too_long_is_given_up_early() -> None:
    letters = Letters()
    bounds = TextBounds(letters, most=2 * PIECE)
    bounds.check("a" * PIECE, letters.encode)
    assert not letters.seen, "what is short is not made tokens of twice"
    bounds.check("a" * 2 * PIECE, letters.encode)
    letters.seen.clear()
    with pytest.raises(ValueError, match=f"longer than this model can take \\({2 * PIECE} tokens"):
        bounds.check("a" * 100 * PIECE, letters.encode)
    assert sum(map(len, letters.seen)) == 3 * PIECE


# the engine transformers


def registry(folder: Path, **pool: Any) -> dict[str, object]:
    """Silence counts early, so that a worker that answers no ping for a second is noticed."""
    listed = [{"name": NAMES[0], "path": str(folder / NAMES[0]), "dtype": "float32"}]
    pool = {"workers_per_device": 1, "heartbeat": 0.2, "silence": "2s", **pool}
    return {"pool": pool, "models": listed}


async def test_streams_go_on_beside_a_prompt_of_many_mebibytes(serve_prism: ServePrism, demo_folder: Path) -> None:
    prism = serve_prism(registry(demo_folder))
    async with session(prism) as client, streaming(client, NAMES[0], MANY, ignore_eos=True) as stream:
        before = prism.pid(0)
        body = {"model": NAMES[0], "prompt": "word " * (LARGE // 5)}
        refused = asyncio.create_task(asyncio.to_thread(ask, prism, "POST", "/v1/completions", body))
        events = 0
        while not refused.done():
            assert await stream.readuntil(b"\n\n")
            events += 1
        assert refused.result().error["code"] == "context_length_exceeded"
        assert events > 1
    assert prism.pid(0) == before


def test_a_large_prompt_is_answered_as_any_other(serve_prism: ServePrism, demo_folder: Path) -> None:
    """Text of 70,000 bytes, of which the tokenizer makes few tokens."""
    prism = serve_prism(registry(demo_folder))
    once = complete(prism, NAMES[0], prompt="Once", max_tokens=4, temperature=0)
    body = {"model": NAMES[0], "prompt": "Once", "max_tokens": 4, "temperature": 0, "user": "u" * 70_000}
    aside_too = ask(prism, "POST", "/v1/completions", body)
    assert aside_too.json["choices"] == once.json["choices"]
