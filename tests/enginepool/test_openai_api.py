"""Bodies of the OpenAI API: what is understood, what is refused by name, what the official client makes of answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from config.errors import RequestError
from enginepool.openai.answers import Choice, Usage, answer_to
from enginepool.openai.errors import error_body
from enginepool.openai.requests import (
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    output_limit,
    parse,
    parse_chat,
    parse_completion,
)

USER = {"role": "user", "content": "Hello"}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {}}]}


def chat(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse_completion(json.dumps({"model": "m", "prompt": "Hello", **fields}).encode())


def refusal(path: str, body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(path, body)
    return caught.value


def chat_refusal(**fields: Any) -> RequestError:
    return refusal("/v1/chat/completions", json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion_refusal(**fields: Any) -> RequestError:
    return refusal("/v1/completions", json.dumps({"model": "m", "prompt": "Hello", **fields}).encode())


def test_chat_has_openais_defaults() -> None:
    request = chat()
    assert request.model == "m"
    assert request.messages == (ChatMessage("user", "Hello"),)
    assert not request.stream
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.n, sampling.stop) == (1.0, 1.0, 1, ())
    assert sampling.max_tokens is None
    assert sampling.seed is None


def test_chat_reads_every_supported_parameter() -> None:
    request = chat(
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        top_p=0.5,
        seed=-7,
        n=3,
        stop=["a", "b"],
        max_completion_tokens=9,
        user="someone",
        metadata={"key": "value"},
    )
    assert request.stream
    assert request.include_usage
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.n) == (0.0, 0.5, -7, 3)
    assert (sampling.stop, sampling.max_tokens) == (("a", "b"), 9)


def test_null_is_the_same_as_not_given() -> None:
    nulls = dict.fromkeys(("temperature", "top_p", "seed", "n", "stop", "stream", "max_tokens", "tools", "logprobs"))
    assert chat(**nulls) == chat()


def test_content_may_be_text_parts_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    request = chat(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert request.messages == (ChatMessage("system", "Be brief."), ChatMessage("user", "Hello"))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1], [2, 3]], ((1,), (2, 3))),
    ],
)
def test_prompt_is_text_or_tokens_one_or_many(prompt: Any, expected: Any) -> None:
    assert completion(prompt=prompt).prompts == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"surprise": 1}}, "stream_options.surprise"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [USER, {"role": "tool", "content": "42", "tool_call_id": "x"}]}, "messages[1].role"),
        ({"messages": [IMAGE]}, "messages[0].content[0].type"),
        ({"messages": [{**USER, "name": "Ada"}]}, "messages[0].name"),
        ({"metadata": {"key": 1}}, "metadata[...]"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_wrong_value_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    error = chat_refusal(**fields)
    assert error.status == 400
    assert error.param == param


@pytest.mark.parametrize(
    ("name", "asks", "neutral"),
    [
        ("tools", [{"type": "function"}], []),
        ("tool_choice", "required", "none"),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("logprobs", True, False),
        ("top_logprobs", 3, None),
        ("presence_penalty", 0.5, 0),
        ("frequency_penalty", -1, 0.0),
        ("logit_bias", {"5": 1}, {}),
        ("modalities", ["text", "audio"], ["text"]),
        ("reasoning_effort", "high", "none"),
        ("store", True, False),
    ],
)
def test_what_chat_cannot_do_is_accepted_only_when_it_asks_for_nothing(name: str, asks: Any, neutral: Any) -> None:
    error = chat_refusal(**{name: asks})
    assert (error.status, error.param) == (400, name)
    assert chat(**{name: neutral}) == chat()


@pytest.mark.parametrize(
    ("name", "asks", "neutral"),
    [
        ("echo", True, False),
        ("best_of", 2, 1),
        ("logprobs", 0, None),
        ("suffix", "end", ""),
        ("logit_bias", {"5": 1}, {}),
    ],
)
def test_what_completions_cannot_do_is_accepted_only_when_neutral(name: str, asks: Any, neutral: Any) -> None:
    error = completion_refusal(**{name: asks})
    assert (error.status, error.param) == (400, name)
    assert completion(**{name: neutral}) == completion()


@pytest.mark.parametrize("prompt", [[], [1, "a"], [-1], [["a"]], 5, [True]])
def test_a_prompt_of_another_shape_is_refused(prompt: Any) -> None:
    assert (completion_refusal(prompt=prompt).param or "").startswith("prompt")


def test_too_many_choices_are_refused() -> None:
    assert completion_refusal(prompt=["a"] * 100, n=8).param == "prompt"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nonsense", b'{"model": "\xff"}', b'{"model": "\\ud83d"}', b'{"tools":' + b"[" * 100_000]
)
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    error = refusal("/v1/chat/completions", body)
    assert (error.status, error.code) == (400, "invalid_json")


def test_missing_parameters_are_named() -> None:
    assert refusal("/v1/chat/completions", b"{}").param == "model"
    assert refusal("/v1/chat/completions", b'{"model": "m"}').param == "messages"
    assert refusal("/v1/completions", b'{"model": "m"}').param == "prompt"
    assert refusal("/v1/completions", b"[]").message.startswith("Invalid value for the body")


def test_another_path_is_not_found() -> None:
    assert refusal("/v1/embeddings", b"{}").status == 404


def test_an_error_has_openais_form() -> None:
    error = chat_refusal(temperature=3)
    assert json.loads(error_body(error)) == {
        "error": {
            "message": error.message,
            "type": "invalid_request_error",
            "param": "temperature",
            "code": "invalid_type",
        }
    }


def test_answers_take_what_fits_unless_told() -> None:
    assert output_limit(chat(), 10, 100) == 90
    assert output_limit(chat(max_tokens=5), 10, 100) == 5
    assert output_limit(completion(), 10, 100) == 16
    assert output_limit(completion(), 90, 100) == 10


@pytest.mark.parametrize(("fields", "param"), [({}, "messages"), ({"max_tokens": 1}, "messages")])
def test_a_prompt_that_fills_the_context_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError, match="at most 100 tokens") as caught:
        output_limit(chat(**fields), 100, 100)
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")


def test_more_tokens_than_fit_are_refused() -> None:
    with pytest.raises(RequestError, match="you requested 101 tokens") as caught:
        output_limit(completion(max_tokens=91), 10, 100)
    assert caught.value.param == "max_tokens"


# what the official client makes of the answers


def events(stream: bytes) -> list[str]:
    parts = stream.decode().split("\n\n")
    assert parts.pop() == ""
    assert all(part.startswith("data: ") for part in parts)
    return [part.removeprefix("data: ") for part in parts]


def test_a_whole_chat_answer() -> None:
    body = answer_to(chat()).whole([Choice(0, "Hé\n", "stop"), Choice(1, "", "length")], Usage(3, 4))
    answer = ChatCompletion.model_validate_json(body, strict=True)
    assert [choice.message.content for choice in answer.choices] == ["Hé\n", ""]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "length"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 7
    assert answer.model == "m"
    assert answer.id.startswith("chatcmpl-")


def test_a_streamed_chat_answer_with_usage() -> None:
    answer = answer_to(chat(stream=True, stream_options={"include_usage": True}))
    stream = answer.begin(0) + answer.piece(0, '"é\n') + answer.finish(0, "length") + answer.end(Usage(3, 4))
    *chunks, done = events(stream)
    assert done == "[DONE]"
    first, piece, finish, usage = (ChatCompletionChunk.model_validate_json(chunk, strict=True) for chunk in chunks)
    assert first.choices[0].delta.role == "assistant"
    assert piece.choices[0].delta.content == '"é\n'
    assert finish.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 4
    assert len({chunk.id for chunk in (first, piece, finish, usage)}) == 1
    assert all(json.loads(chunk)["usage"] is None for chunk in chunks[:-1])


def test_a_streamed_chat_answer_without_usage() -> None:
    answer = answer_to(chat(stream=True))
    assert events(answer.end(Usage(3, 4))) == ["[DONE]"]
    assert "usage" not in json.loads(events(answer.piece(0, "x"))[0])


def test_a_whole_text_answer() -> None:
    body = answer_to(completion()).whole([Choice(0, "text", "length")], Usage(3, 4))
    answer = Completion.model_validate_json(body, strict=True)
    assert answer.choices[0].text == "text"
    assert answer.object == "text_completion"


def test_a_streamed_text_answer() -> None:
    answer = answer_to(completion(stream=True))
    stream = answer.begin(1) + answer.piece(1, "text") + answer.finish(1, "stop") + answer.end(Usage(3, 4))
    *chunks, done = events(stream)
    assert done == "[DONE]"
    pieces = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert [(piece["index"], piece["text"], piece["finish_reason"]) for piece in pieces] == [
        (1, "text", None),
        (1, "", "stop"),
    ]
