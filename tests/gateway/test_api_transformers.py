"""The official OpenAI client against real tiny models: three of them on two workers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from tokenizers import Tokenizer

from gateway.demo_models import NAMES
from tests.rig.asking import openai_client
from tests.rig.serving import PATIENCE, Prism

MODEL = NAMES[0]
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Why is the sky blue?"}]
LENGTH = 12
"""Tokens of a short answer."""


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Iterator[Prism]:
    """All its processes are there before the first test, each of which checks that it left none behind."""
    models = [{"name": name, "path": str(demo_folder / name)} for name in NAMES]
    prism = Prism.start(tmp_path_factory.mktemp("transformers") / "gateway", {"models": models})
    prism.wait_for_workers()
    for name in NAMES:
        assert prism.command("activate", model=name).ok
    yield prism
    prism.close()


@pytest.fixture
def client(prism: Prism) -> Iterator[openai.OpenAI]:
    with openai_client(prism) as client:
        yield client


def ask(client: openai.OpenAI, model: str = MODEL, **options: object) -> str:
    answer = client.chat.completions.create(
        model=model,
        messages=QUESTION,
        **{"max_tokens": LENGTH, "temperature": 0, **options},  # type: ignore[call-overload]
    )
    text = answer.choices[0].message.content
    assert isinstance(text, str)
    return text


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)
    assert client.models.retrieve(MODEL).id == MODEL


def test_every_model_answers_although_there_are_more_than_workers(client: openai.OpenAI, prism: Prism) -> None:
    """`max_retries` is 0: a 429 or 503 would fail."""
    assert len(prism.status().workers) < len(NAMES)
    texts = {name: ask(client, name) for name in NAMES}
    assert len(set(texts.values())) == len(NAMES)
    assert {name: ask(client, name) for name in NAMES} == texts


def test_a_chat_has_content_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_completion_tokens=LENGTH, temperature=0)
    assert answer.model == MODEL
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    (choice,) = answer.choices
    assert choice.finish_reason == ("length" if answer.usage.completion_tokens == LENGTH else "stop")
    assert choice.message.role == "assistant"


def test_a_streamed_chat_says_the_same_as_a_whole_one(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=LENGTH, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ask(client)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert 0 < last.usage.completion_tokens <= LENGTH


def test_a_completion_is_answered_whole_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="The sky", max_tokens=LENGTH, temperature=0)
    stream = client.completions.create(model=MODEL, prompt="The sky", max_tokens=LENGTH, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text


def test_a_batch_of_prompts_gets_an_answer_each(client: openai.OpenAI) -> None:
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0).choices[0].text
        for prompt in ("The sky", "An apple")
    ]
    together = client.completions.create(model=MODEL, prompt=["The sky", "An apple"], max_tokens=4, temperature=0)
    assert [choice.text for choice in together.choices] == alone


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_an_answer_is_no_longer_than_asked(client: openai.OpenAI, limit: str) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, **{limit: 1})  # type: ignore[call-overload]
    assert answer.usage.completion_tokens == 1
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("as_list", [False, True])
def test_an_answer_ends_before_the_stop_text(client: openai.OpenAI, as_list: bool) -> None:
    text = ask(client)
    middle = len(text) // 2
    stop = text[middle : middle + 3]
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=LENGTH, temperature=0, stop=[stop, "never said"] if as_list else stop
    )
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_the_same_seed_says_the_same_and_another_does_not(client: openai.OpenAI) -> None:
    first = ask(client, temperature=1, seed=7)
    assert ask(client, temperature=1, seed=7) == first
    assert ask(client, temperature=1, seed=8) != first


def test_a_temperature_of_zero_is_greedy_and_so_is_a_tiny_top_p(client: openai.OpenAI) -> None:
    greedy = ask(client, temperature=0)
    assert ask(client, temperature=0, seed=3) == greedy
    assert ask(client, temperature=1, top_p=1e-6, seed=3) == greedy
    assert ask(client, temperature=2, seed=3) != greedy


def test_several_choices_differ_and_are_counted_together(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=LENGTH, temperature=1, seed=7, n=3
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) == 3
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3 * LENGTH


def test_text_of_any_language_reaches_the_tokenizer_as_sent(client: openai.OpenAI, demo_folder: Path) -> None:
    text = "Licht zerlegen: 虹 🌈 ‮\u0000 \\u00e9"
    tokens = Tokenizer.from_file(str(demo_folder / MODEL / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    answer = client.completions.create(model=MODEL, prompt=text, max_tokens=1, temperature=0)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(tokens)
    same = client.completions.create(model=MODEL, prompt=tokens, max_tokens=1, temperature=0)
    assert same.choices[0].text == answer.choices[0].text


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("response_format", {"type": "json_object"}),
        ("logprobs", True),
        ("presence_penalty", 1.0),
        ("extra_body", {"top_k": 5}),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, param: str, value: object) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, MODEL, **{param: value})
    assert refused.value.param == ("top_k" if param == "extra_body" else param)
    assert refused.value.type == "invalid_request_error"


def test_a_prompt_that_is_too_long_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model=MODEL, prompt=[5] * 100_000, max_tokens=1)
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "prompt"


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, "gpt-17")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


def test_a_header_sets_the_deadline(client: openai.OpenAI) -> None:
    assert ask(client, extra_headers={"X-SLO-TTFT-MS": "300000"}) == ask(client)
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, extra_headers={"X-SLO-TTFT-MS": "soon"})
    assert refused.value.param == "X-SLO-TTFT-MS"


def test_closing_a_stream_frees_its_place(client: openai.OpenAI, prism: Prism) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4000, temperature=0, stream=True)
    next(iter(stream))
    stream.close()
    prism.wait_until(lambda status: status.in_flight == 0, "the abandoned request is gone")
    assert ask(client)


async def test_many_requests_at_a_time_each_get_their_own_answer(client: openai.OpenAI, prism: Prism) -> None:
    prompts = [f"{number} apples and" for number in range(8)]
    alone = [
        client.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0).choices[0].text
        for prompt in prompts
    ]
    async with openai.AsyncOpenAI(base_url=prism.url + "/v1", api_key="none", max_retries=0, timeout=PATIENCE) as many:
        together = await asyncio.gather(
            *(many.completions.create(model=MODEL, prompt=prompt, max_tokens=6, temperature=0) for prompt in prompts)
        )
    assert [answer.choices[0].text for answer in together] == alone
