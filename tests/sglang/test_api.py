"""The official OpenAI client against SGLang behind the gateway: three models on two workers, as SGLang answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest

from gateway.demo_models import CONTEXT, NAMES
from tests.rig.asking import CHAT, ask, chat, openai_client, session, streaming
from tests.rig.serving import Prism
from tests.rig.sglang_models import NEEDS_SGLANG

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]

MODEL = "llama-tiny"
HELLO: Any = [{"role": "user", "content": "Why is the sky blue?"}]
ENDLESS = CONTEXT - 100
"""Tokens of an answer that is still under way when its test is over."""


def registry(models: dict[str, Path], **pool: object) -> dict[str, object]:
    listed = [{"name": name, "path": str(path), "dtype": "float32"} for name, path in models.items()]
    return {"pool": {"engine": "sglang", "kv_memory": "64MiB", **pool}, "models": listed}


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory, sglang_models: dict[str, Path]) -> Iterator[Prism]:
    """All its processes are there before the first test, each of which checks that it left none behind."""
    prism = Prism.start(tmp_path_factory.mktemp("sglang") / "gateway", registry(sglang_models))
    prism.wait_for_workers()
    yield prism
    prism.close()


@pytest.fixture
def client(prism: Prism) -> Iterator[openai.OpenAI]:
    with openai_client(prism) as client:
        yield client


def say(client: openai.OpenAI, model: str, **options: Any) -> str:
    fixed = {"max_tokens": 12, "temperature": 0, **options}
    text = client.chat.completions.create(model=model, messages=HELLO, **fixed).choices[0].message.content
    assert isinstance(text, str)
    return text


def test_three_models_on_two_workers_answer_the_same_each_time(client: openai.OpenAI, prism: Prism) -> None:
    before = {name: say(client, name) for name in NAMES}
    assert len(prism.status().workers) < len(NAMES)
    assert {name: say(client, name) for name in reversed(NAMES)} == before
    assert len(set(before.values())) == len(NAMES)


def test_a_streamed_chat_is_the_whole_one_in_pieces(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    *events, last = stream
    assert "".join(it.choices[0].delta.content or "" for it in events if it.choices) == say(client, MODEL)
    assert last.usage is not None
    assert last.usage.completion_tokens == 12


def test_completions_stop_and_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 8
    stop = logprobs.tokens[3]
    stopped = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, temperature=0, stop=stop)
    assert stopped.choices[0].finish_reason == "stop"
    assert stop not in stopped.choices[0].text


def test_an_answer_keeps_to_a_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "sky", "schema": schema}}
    for _ in range(5):  # white space counts as an answer to a model that was never trained
        text = say(client, MODEL, response_format=wanted, max_tokens=1000, temperature=1)
        if text.rstrip().endswith("}"):
            break
    assert json.loads(text)["colour"] in ("red", "blue")


def test_a_response_is_answered_whole_and_in_events(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "input": HELLO, "temperature": 0, "max_output_tokens": 12}
    whole = client.responses.create(**asked)
    assert whole.status == "completed"
    *_, last = stream = list(client.responses.create(**asked, stream=True))
    assert isinstance(last, openai.types.responses.ResponseCompletedEvent)
    assert last.response.usage is not None
    assert last.response.usage.output_tokens > 0
    deltas = [it.delta for it in stream if it.type == "response.output_text.delta"]
    assert "".join(deltas) == last.response.output_text == whole.output_text


def test_a_response_is_not_kept(client: openai.OpenAI) -> None:
    response = client.responses.create(model=MODEL, input="Once", max_output_tokens=8, store=True)
    assert response.model_dump()["store"] is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)


@pytest.mark.parametrize("field", [{"background": True}, {"previous_response_id": "resp_1"}])
def test_a_response_that_needs_a_kept_one_is_refused_by_parameter(client: openai.OpenAI, field: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="stored here") as refused:
        client.responses.create(model=MODEL, input="Once", **field)
    assert [refused.value.param] == list(field)


def test_a_client_chooses_no_id_of_a_response(prism: Prism) -> None:
    body = {"model": MODEL, "input": "Once", "max_output_tokens": 8, "request_id": "resp_mine"}
    answer = ask(prism, "POST", "/v1/responses", body)
    assert answer.status == 200
    assert b"resp_mine" not in answer.body


def test_sglangs_own_routes_for_inference(prism: Prism) -> None:
    tokens = ask(prism, "POST", "/v1/tokenize", {"model": MODEL, "prompt": "Once upon a time"}).json["tokens"]
    text = ask(prism, "POST", "/v1/detokenize", {"model": MODEL, "tokens": tokens}).json["text"]
    assert text == "Once upon a time"
    body = {"model": MODEL, "input_ids": tokens, "sampling_params": {"max_new_tokens": 4}}
    assert ask(prism, "POST", "/generate", body).json["meta_info"]["prompt_tokens"] == len(tokens)


def test_what_the_model_cannot_do_is_refused(prism: Prism) -> None:
    answer = ask(prism, "POST", "/v1/embeddings", {"model": MODEL, "input": "Once"})
    assert answer.status == 400
    assert "embedding" in answer.json["message"]


@pytest.mark.parametrize("path", ["/flush_cache", "/update_weights_from_disk", "/release_memory_occupation"])
def test_sglangs_other_routes_are_not_there(prism: Prism, path: str) -> None:
    assert ask(prism, "POST", path, {"model": MODEL}).status == 404


def test_a_prompt_that_is_too_long_is_a_400_for_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="longer than"):
        client.completions.create(model=MODEL, prompt="word " * CONTEXT, stream=True)


async def test_a_client_that_leaves_frees_its_worker(prism: Prism) -> None:
    async with session(prism) as client:
        for _ in range(3):
            async with streaming(client, MODEL, ENDLESS):
                pass
    prism.wait_until(lambda s: not any(m.running or m.waiting for m in s.models), "nothing runs")
    assert prism.command("evict", model=MODEL).ok


def test_many_at_a_time_over_all_models(prism: Prism) -> None:
    async def run() -> list[int]:
        async with session(prism) as client:
            bodies = [{"model": name, "messages": HELLO, "max_tokens": 8} for name in NAMES for _ in range(8)]
            return list(await asyncio.gather(*(status(client.post(CHAT, json=body)) for body in bodies)))

    async def status(request: Any) -> int:
        async with request as response:
            await response.read()
            return int(response.status)

    assert set(asyncio.run(run())) == {200}


async def test_a_rank_that_is_killed_costs_only_its_workers_streams(prism: Prism) -> None:
    async with (
        session(prism) as client,
        streaming(client, NAMES[0], ENDLESS) as hit,
        streaming(client, NAMES[1], ENDLESS) as other,
    ):
        number = next(w.worker for w in prism.status().workers if w.model == NAMES[0])
        front = psutil.Process(prism.pid(number))
        rank, *_ = front.children()
        rank.kill()
        assert b'"error"' in await hit.read()
        await other.readuntil(b"\n\n")
        prism.wait_until(lambda s: s.workers[number].pid not in (None, front.pid), "it is replaced")
        assert chat(prism, NAMES[0], max_tokens=4).status == 200
        await other.readuntil(b"\n\n")


async def test_a_front_that_is_killed_takes_its_rank_along_and_neither_stays_a_zombie(prism: Prism) -> None:
    prism.wait_until(lambda s: all(w.state != "starting" for w in s.workers), "both workers are there")
    front = psutil.Process(prism.pid(0))
    rank, *_ = front.children()
    front.kill()
    prism.wait_until(lambda s: s.workers[0].pid not in (None, front.pid), "it is replaced")
    prism.wait_until(lambda _: not front.is_running() and not rank.is_running(), "both are reaped")
