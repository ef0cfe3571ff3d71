"""No request ends a rank or changes what is said to another one: each of these once did one or the other."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from enginepool.messages import Chunk, Done, Reply
from tests.rig.models import Stored
from tests.rig.sglang_models import COMPLETIONS, NEEDS_SGLANG, PROMPT, Worker

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG, pytest.mark.asyncio(loop_scope="session")]

GENERATE, CHAT, SCORE = "/generate", "/v1/chat/completions", "/v1/score"
TOKENS = 40
"""Of the stream beside each request."""
TEXT = {"text": PROMPT, "sampling_params": {"max_new_tokens": 4}}
MESSAGES = {"messages": [{"role": "user", "content": PROMPT}]}
SCHEMA = json.dumps({"type": "object"})
JSON_OBJECT = {"type": "json_object"}
SCORED = {"query": "a", "items": ["b", "c"], "label_token_ids": [1, 2]}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def llama(sglang_module_worker: Worker, sglang_stored: dict[str, Stored]) -> Worker:
    await sglang_module_worker.activate(sglang_stored["llama-tiny"])
    return sglang_module_worker


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def alone(llama: Worker) -> str:
    """What the stream says with nobody beside it."""
    return await finish(llama, begin(llama))


def begin(worker: Worker) -> int:
    return worker.submit(stream=True, max_tokens=TOKENS, ignore_eos=True)


async def finish(worker: Worker, stream: int) -> str:
    await worker.until(lambda: worker.ended(stream))
    *_, done = worker.outputs(stream)
    assert isinstance(done, Done), done
    assert not done.error
    data = b"".join(it.data for it in worker.outputs(stream) if isinstance(it, Chunk))
    events = [it.removeprefix(b"data: ") for it in data.split(b"\n\n") if it.startswith(b"data: {")]
    return "".join(json.loads(it)["choices"][0]["text"] for it in events)


async def ask_beside(worker: Worker, alone: str, path: str, **fields: Any) -> list[Reply]:
    """The answers to three of the same request, beside a stream that must say what it always says."""
    rank, stream = worker.rank.pid, begin(worker)
    await worker.until(lambda: worker.began(stream))
    requests = [worker.submit(path, **fields) for _ in range(3)]
    await worker.until(lambda: all(map(worker.ended, requests)))
    assert await finish(worker, stream) == alone
    assert worker.rank.pid == rank
    return [it for request in requests for it in worker.outputs(request) if isinstance(it, Reply)]


@pytest.mark.parametrize("penalty", ["frequency_penalty", "presence_penalty"])
async def test_penalties_count_each_token_once_whoever_is_prefilled_beside(llama: Worker, penalty: str) -> None:
    biased = {"logit_bias": {str(token): 30 for token in range(100, 140)}, penalty: 1.5}

    def begin_biased() -> int:
        return llama.submit(stream=True, max_tokens=TOKENS, ignore_eos=True, **biased)

    said = await finish(llama, begin_biased())
    stream = begin_biased()
    while not llama.ended(stream):
        beside = llama.submit(max_tokens=2)
        await llama.until(partial(llama.ended, beside))
    assert await finish(llama, stream) == said


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (SCORE, SCORED),
        (SCORE, {**SCORED, "item_first": True, "apply_softmax": True}),
        (SCORE, {**SCORED, "items": [[]]}),
        (GENERATE, {**TEXT, "return_logprob": True, "token_ids_logprob": []}),
        (GENERATE, {**TEXT, "return_logprob": True, "token_ids_logprob": [1, 2]}),
        (GENERATE, {**TEXT, "return_logprob": True, "token_ids_logprob": [5], "logprob_start_len": 0}),
        (GENERATE, {**TEXT, "return_logprob": True, "top_logprobs_num": 3}),
        (GENERATE, {**TEXT, "token_ids_logprob": [1, 2]}),
        (COMPLETIONS, {"logprobs": 3, "echo": True}),
        (COMPLETIONS, {"repetition_penalty": 0.01}),
        (COMPLETIONS, {"temperature": 100, "top_p": 1e-6, "top_k": 1}),
        (COMPLETIONS, {"temperature": 1e-300}),
        (COMPLETIONS, {"logit_bias": {"5": 100}, "min_tokens": 3}),
        (COMPLETIONS, {"json_schema": SCHEMA}),
        (CHAT, {**MESSAGES, "logprobs": True, "top_logprobs": 20}),
        (CHAT, {**MESSAGES, "user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"}),
        (CHAT, {**MESSAGES, "prompt_cache_key": "k", "safety_identifier": "s", "parallel_tool_calls": False}),
        (CHAT, {**MESSAGES, "lora_path": None, "bootstrap_room": None, "return_hidden_states": False}),
    ],
)
async def test_requests_of_many_kinds_are_served_beside_a_stream(
    llama: Worker, alone: str, path: str, fields: dict[str, Any]
) -> None:
    replies = await ask_beside(llama, alone, path, **fields)
    assert [it.status for it in replies] == [200] * 3, replies


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (COMPLETIONS, {"json_schema": SCHEMA, "min_tokens": 2}, ["json_schema", "min_tokens"]),
        (COMPLETIONS, {"response_format": JSON_OBJECT, "min_tokens": 2}, ["response_format", "min_tokens"]),
        (CHAT, {**MESSAGES, "response_format": JSON_OBJECT, "min_tokens": 2}, ["response_format", "min_tokens"]),
        (COMPLETIONS, {"regex": "a+", "min_tokens": 2}, ["regex", "min_tokens"]),
        (COMPLETIONS, {"repetition_penalty": 1e-300}, ["repetition_penalty"]),
        (COMPLETIONS, {"temperature": 1e300}, ["temperature"]),
        (COMPLETIONS, {"top_p": 1e-300}, ["top_p"]),
        (COMPLETIONS, {"min_tokens": 2**40, "max_tokens": 2**41}, ["min_new_tokens"]),
        (COMPLETIONS, {"stop": ["x"] * 1000}, ["stop"]),
        (COMPLETIONS, {"logit_bias": {str(it): 1 for it in range(2000)}}, ["logit_bias"]),
        (COMPLETIONS, {"logit_bias": {"²": 1}}, ["logit_bias"]),
        (COMPLETIONS, {"prompt": ""}, ["empty"]),
        (COMPLETIONS, {"prompt": []}, []),
        (COMPLETIONS, {"prompt": [[]]}, []),
        (COMPLETIONS, {"prompt": [[1], []]}, []),
        (COMPLETIONS, {"lora_path": ["a"]}, ["lora_path"]),
        (COMPLETIONS, {"custom_logit_processor": "x"}, ["custom_logit_processor"]),
        (COMPLETIONS, {"return_hidden_states": True}, ["return_hidden_states"]),
        (COMPLETIONS, {"session_params": {"id": "x"}}, ["session_params"]),
        (COMPLETIONS, {"bootstrap_room": 1}, ["bootstrap_room"]),
        (COMPLETIONS, {"routed_dp_rank": 1}, ["routed_dp_rank"]),
        (GENERATE, {"input_ids": [[]]}, []),
        (GENERATE, {"input_ids": []}, []),
        (GENERATE, {**TEXT, "lora_id": ["a"]}, ["lora_id"]),
        (GENERATE, {**TEXT, "lora_id": "a"}, ["lora_id"]),
        (GENERATE, {**TEXT, "session_params": {"id": "x"}}, ["session_params"]),
        (GENERATE, {**TEXT, "return_hidden_states": "last"}, ["return_hidden_states"]),
        (GENERATE, {**TEXT, "image_data": "data:image/png;base64,AAAA"}, ["image_data"]),
        (GENERATE, {**TEXT, "bootstrap_host": "here", "bootstrap_room": 3}, ["bootstrap"]),
        (GENERATE, {**TEXT, "return_routed_experts": True, "routed_experts_start_len": -5}, ["routed_experts"]),
        (GENERATE, {**TEXT, "return_logprob": True, "token_ids_logprob": [-1]}, ["token_ids_logprob"]),
        (GENERATE, {**TEXT, "return_logprob": True, "token_ids_logprob": [2**40]}, ["token_ids_logprob"]),
        (GENERATE, {**TEXT, "return_logprob": True, "top_logprobs_num": 4096}, ["top_logprobs_num"]),
        (GENERATE, {"text": PROMPT, "sampling_params": {"stream_interval": -1}}, ["stream_interval"]),
        (GENERATE, {"text": PROMPT, "sampling_params": {"custom_params": {"a": 1}}}, ["custom_params"]),
        (SCORE, {**SCORED, "label_token_ids": [2**40]}, ["Token ID"]),
        (SCORE, {**SCORED, "return_pooled_hidden_states": True}, ["return_pooled_hidden_states"]),
    ],
)
async def test_what_the_rank_would_trip_over_is_a_400_that_names_it(
    llama: Worker, alone: str, path: str, fields: dict[str, Any], named: list[str]
) -> None:
    replies = await ask_beside(llama, alone, path, **fields)
    assert [it.status for it in replies] == [400] * 3, replies
    assert all(name in replies[0].body.decode() for name in named), replies[0]


async def test_score_beside_completions_in_one_batch(llama: Worker, alone: str) -> None:
    """As many of both as run at once, begun together, again and again."""
    rank = llama.rank.pid
    for _ in range(10):
        requests = [llama.submit(SCORE, **SCORED), llama.submit(max_tokens=2), llama.submit(SCORE, **SCORED)]
        await llama.until(lambda requests=requests: all(map(llama.ended, requests)))
        replies = [it for request in requests for it in llama.outputs(request) if isinstance(it, Reply)]
        assert [it.status for it in replies] == [200] * 3, replies
    assert await finish(llama, begin(llama)) == alone
    assert llama.rank.pid == rank
