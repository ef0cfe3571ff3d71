"""The transformers engine on real tiny models: right tokens, right order, shared weights, and nothing left over."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from config.errors import EngineError, StoreError
from enginepool.engine import Output
from enginepool.engines.transformers import TransformersEngine
from enginepool.engines.transformers.skeleton import TransformersSkeleton
from enginepool.messages import Chunk, Counted, Done, Head, KvLimitApplied, Reply, Submit
from enginepool.weights.segment import create, open_segment
from gateway.demo_models import NAMES
from tests.rig.models import Stored

PATIENCE = 300.0
"""Seconds after which a test gives up; no measure of speed."""
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
PROMPT = "Once upon a time"


class Answered:
    """All outputs of one request."""

    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        return bool(self.outputs) and isinstance(self.outputs[-1], (Reply, Done))

    @property
    def reply(self) -> Reply:
        last = self.outputs[-1]
        assert isinstance(last, Reply)
        return last

    @property
    def body(self) -> Any:
        return json.loads(self.reply.body)

    @property
    def text(self) -> str:
        return "".join(event["choices"][0]["text"] for event in self.events)

    @property
    def events(self) -> list[Any]:
        stream = b"".join(output.data for output in self.outputs if isinstance(output, Chunk)).decode()
        parts = [part.removeprefix("data: ") for part in stream.split("\n\n") if part]
        return [json.loads(part) for part in parts if part != "[DONE]"]


class Driver:
    """Plays the worker: owns an engine and keeps what it emits."""

    def __init__(self, max_running: int) -> None:
        self.log: list[Output] = []
        self._answers: dict[int, Answered] = {}
        self._thread = threading.get_ident()
        self._changed = asyncio.Event()
        self.engine = TransformersEngine(self._emit, max_running=max_running, threads=1)

    async def activate(self, model: Stored, verify: bool = False) -> dict[str, float]:
        return await self.engine.activate(model.spec, model.manifest, model.segment.ref, verify)

    def submit(self, path: str = COMPLETIONS, deadline: float = 1.0, **fields: Any) -> int:
        request = len(self._answers) + 1
        self._answers[request] = Answered()
        body = {"model": "m", "temperature": 0, **({"prompt": PROMPT} if path == COMPLETIONS else {}), **fields}
        self.engine.submit(Submit(request, path, json.dumps(body).encode(), deadline))
        return request

    def answer(self, request: int) -> Answered:
        return self._answers[request]

    async def run(self, path: str = COMPLETIONS, **fields: Any) -> Answered:
        return await self.finish(self.submit(path, **fields))

    async def finish(self, request: int) -> Answered:
        await self.until(lambda: self._answers[request].ended)
        return self._answers[request]

    async def until(self, reached: Any) -> None:
        async with asyncio.timeout(PATIENCE):
            while not reached():
                self._changed.clear()
                await self._changed.wait()

    async def settle(self) -> None:
        """Until the engine has taken every command so far."""
        self.engine.set_kv_limit(999, 0)
        await self.until(lambda: any(isinstance(it, KvLimitApplied) and it.revision == 999 for it in self.log))
        self.log = [it for it in self.log if not (isinstance(it, KvLimitApplied) and it.revision == 999)]

    def _emit(self, output: Output) -> None:
        assert threading.get_ident() == self._thread
        self.log.append(output)
        if not isinstance(output, KvLimitApplied):
            answered = self._answers[output.request]
            assert not answered.ended, "an output after the last one"
            answered.outputs.append(output)
        self._changed.set()


@pytest_asyncio.fixture
async def driver() -> AsyncIterator[Driver]:
    driver = Driver(max_running=4)
    yield driver
    await driver.engine.close()
    assert not any(thread.name == "engine" for thread in threading.enumerate())


@pytest_asyncio.fixture
async def llama(driver: Driver, stored: dict[str, Stored]) -> Driver:
    await driver.activate(stored["llama-tiny"])
    return driver


def generate(path: str, count: int) -> list[int]:
    """What transformers itself answers to PROMPT, greedily."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=count, do_sample=False)[0].tolist()
    return tokens[prompt["input_ids"].shape[1] :]


def mapped_segments() -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:prism-" in line]


# what it answers


@pytest.mark.parametrize("name", NAMES)
async def test_greedy_answers_equal_transformers_own_generate(
    driver: Driver, stored: dict[str, Stored], name: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stored[name].spec.path)
    generated = generate(stored[name].spec.path, 40)
    await driver.activate(stored[name])
    whole = (await driver.run(max_tokens=40)).body
    streamed = await driver.run(max_tokens=40, stream=True)
    assert whole["choices"][0]["text"] == tokenizer.decode(generated, skip_special_tokens=True) == streamed.text
    assert whole["usage"]["completion_tokens"] == len(generated)
    assert whole["usage"]["prompt_tokens"] == len(tokenizer(PROMPT)["input_ids"])


async def test_a_chat_goes_through_the_models_template(llama: Driver, stored: dict[str, Stored]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stored["llama-tiny"].spec.path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    by_chat = await llama.run(CHAT, messages=messages, max_tokens=12)
    by_ids = await llama.run(prompt=ids, max_tokens=12)
    assert by_chat.body["choices"][0]["message"]["content"] == by_ids.body["choices"][0]["text"] != ""
    assert by_chat.outputs[0] == Counted(1, len(ids))


async def test_a_stream_is_head_chunks_and_done(llama: Driver) -> None:
    answered = await llama.run(CHAT, messages=[{"role": "user", "content": "Hello"}], max_tokens=5, stream=True)
    counted, head, *chunks, done = answered.outputs
    assert isinstance(counted, Counted)
    assert head == Head(1, 200, "text/event-stream")
    assert all(isinstance(chunk, Chunk) and chunk.data.endswith(b"\n\n") for chunk in chunks)
    assert done == Done(1, counted.prompt_tokens, 5, "")
    assert answered.events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert answered.events[-1]["choices"][0]["finish_reason"] == "length"


async def test_concurrent_streams_take_turns_and_do_not_disturb_each_other(llama: Driver) -> None:
    alone = [(await llama.run(prompt=prompt, max_tokens=20, stream=True)).text for prompt in ("One", "Two")]
    llama.log.clear()
    together = [llama.submit(prompt=prompt, max_tokens=20, stream=True) for prompt in ("One", "Two")]
    assert [(await llama.finish(request)).text for request in together] == alone
    order = [output.request for output in llama.log if isinstance(output, Chunk)]
    turns = sum(1 for before, after in itertools.pairwise(order) if before != after)
    assert turns >= 10


async def test_the_same_seed_gives_the_same_text_whatever_else_runs(llama: Driver) -> None:
    sampled = {"temperature": 1.0, "max_tokens": 20, "seed": 7}
    alone = (await llama.run(**sampled)).body["choices"][0]["text"]
    neighbours = [llama.submit(prompt="Other", temperature=1, max_tokens=30) for _ in range(3)]
    again = (await llama.run(**sampled)).body["choices"][0]["text"]
    other = (await llama.run(**{**sampled, "seed": 8})).body["choices"][0]["text"]
    assert alone == again != other
    for neighbour in neighbours:
        await llama.finish(neighbour)


async def test_a_tiny_top_p_is_greedy(llama: Driver) -> None:
    greedy = (await llama.run(max_tokens=10)).body["choices"][0]["text"]
    narrow = (await llama.run(max_tokens=10, temperature=1.0, top_p=1e-9)).body["choices"][0]["text"]
    cold = (await llama.run(max_tokens=10, temperature=1e-30)).body["choices"][0]["text"]
    assert greedy == narrow == cold


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_and_is_not_in_it(llama: Driver, stream: bool) -> None:
    full = (await llama.run(max_tokens=20)).body["choices"][0]["text"]
    stop = full[7:12]
    answered = await llama.run(max_tokens=20, stop=["never in it", stop], stream=stream)
    choices = [event["choices"][0] for event in answered.events] if stream else answered.body["choices"]
    assert "".join(choice["text"] for choice in choices) == full[: full.index(stop)]
    assert choices[-1]["finish_reason"] == "stop"


async def test_an_end_of_turn_token_ends_the_answer_unless_told_to_go_on(
    driver: Driver, stored: dict[str, Stored], tmp_path: Path
) -> None:
    model = stored["llama-tiny"]
    generated = generate(model.spec.path, 10)
    assert generated[5] not in generated[:5]
    shutil.copytree(model.spec.path, tmp_path / "model")
    generation = json.loads((tmp_path / "model/generation_config.json").read_text())
    (tmp_path / "model/generation_config.json").write_text(json.dumps({**generation, "eos_token_id": [generated[5]]}))
    spec = msgspec.structs.replace(model.spec, path=str(tmp_path / "model"))
    await driver.engine.activate(spec, model.manifest, model.segment.ref, False)
    body = (await driver.run(max_tokens=10)).body
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["choices"][0]["text"] == AutoTokenizer.from_pretrained(model.spec.path).decode(generated[:5])
    assert body["usage"]["completion_tokens"] == 6
    asked_on = (await driver.run(max_tokens=10, ignore_eos=True)).body
    assert asked_on["choices"][0]["finish_reason"] == "length"
    assert asked_on["usage"]["completion_tokens"] == 10


async def test_n_answers_share_one_prefill_and_differ(llama: Driver) -> None:
    before = llama.engine.load.prompt_tokens
    body = (await llama.run(n=3, temperature=1.0, seed=5, max_tokens=10)).body
    texts = [choice["text"] for choice in body["choices"]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert body["usage"]["completion_tokens"] == 30
    assert llama.engine.load.prompt_tokens - before == body["usage"]["prompt_tokens"]
    assert texts[0] == (await llama.run(temperature=1.0, seed=5, max_tokens=10)).body["choices"][0]["text"]
    greedy = (await llama.run(n=2, max_tokens=10)).body["choices"]
    assert greedy[0]["text"] == greedy[1]["text"] == (await llama.run(max_tokens=10)).body["choices"][0]["text"]


async def test_several_prompts_are_answered_in_order(llama: Driver) -> None:
    single = [(await llama.run(prompt=prompt, max_tokens=6)).body["choices"][0]["text"] for prompt in ("One", "Two")]
    body = (await llama.run(prompt=["One", "Two"], n=2, max_tokens=6)).body
    texts = {choice["index"]: choice["text"] for choice in body["choices"]}
    assert texts == {0: single[0], 1: single[0], 2: single[1], 3: single[1]}


async def test_completions_have_16_tokens_unless_told(llama: Driver) -> None:
    assert (await llama.run()).body["usage"]["completion_tokens"] == 16


# what it refuses


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "word " * 6000}]}, "messages", "context_length_exceeded"),
        (COMPLETIONS, {"prompt": "word " * 6000}, "prompt", "context_length_exceeded"),
        (COMPLETIONS, {"max_tokens": 4096}, "max_tokens", "context_length_exceeded"),
        (COMPLETIONS, {"prompt": ""}, "prompt", "invalid_value"),
        (COMPLETIONS, {"prompt": [5, 4096]}, "prompt", "invalid_value"),
        (COMPLETIONS, {"echo": True, "stream": True}, "echo", "unsupported_value"),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused_by_name(
    llama: Driver, path: str, fields: dict[str, Any], param: str, code: str
) -> None:
    answered = await llama.run(path, **fields)
    assert answered.reply.status == 400
    assert answered.body["error"]["param"] == param
    assert answered.body["error"]["code"] == code
    assert answered.reply.content_type == "application/json"
    assert (await llama.run(max_tokens=2)).reply.status == 200


async def test_the_default_length_is_clipped_to_the_context(llama: Driver) -> None:
    ids = [5] * 4090
    assert (await llama.run(prompt=ids)).body["usage"]["completion_tokens"] == 6


async def test_a_model_without_chat_template_refuses_chats(
    driver: Driver, stored: dict[str, Stored], tmp_path: Path
) -> None:
    model = stored["llama-tiny"]
    shutil.copytree(model.spec.path, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").unlink()
    spec = msgspec.structs.replace(model.spec, path=str(tmp_path / "model"))
    await driver.engine.activate(spec, model.manifest, model.segment.ref, False)
    answered = await driver.run(CHAT, messages=[{"role": "user", "content": "Hello"}])
    assert (answered.reply.status, answered.body["error"]["param"]) == (400, "messages")


async def test_a_template_that_refuses_the_messages_is_a_400(
    driver: Driver, stored: dict[str, Stored], tmp_path: Path
) -> None:
    model = stored["llama-tiny"]
    shutil.copytree(model.spec.path, tmp_path / "model")
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}hello"
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    spec = msgspec.structs.replace(model.spec, path=str(tmp_path / "model"))
    await driver.engine.activate(spec, model.manifest, model.segment.ref, False)
    answered = await driver.run(CHAT, messages=[{"role": "system", "content": "Hello"}])
    assert answered.reply.status == 400
    assert "no system role" in answered.body["error"]["message"]


async def test_without_a_model_a_request_is_refused(driver: Driver) -> None:
    assert (await driver.run()).reply.status == 503


# order, aborts, limits, faults


async def test_waiting_requests_go_in_deadline_order(stored: dict[str, Stored]) -> None:
    driver = Driver(max_running=1)
    await driver.activate(stored["llama-tiny"])
    driver.engine.hold(True)
    late, early, middle = (driver.submit(deadline=deadline, max_tokens=2) for deadline in (3.0, 1.0, 2.0))
    driver.engine.hold(False)
    for request in (late, early, middle):
        await driver.finish(request)
    assert [output.request for output in driver.log if isinstance(output, Reply)] == [early, middle, late]
    await driver.engine.close()


async def test_no_more_requests_run_together_than_allowed(llama: Driver) -> None:
    requests = [llama.submit(max_tokens=40, stream=True) for _ in range(7)]
    running: set[int] = set()
    peak = 0
    for request in requests:
        await llama.finish(request)
    for output in llama.log:
        if isinstance(output, Head):
            running.add(output.request)
            peak = max(peak, len(running))
        elif isinstance(output, Done):
            running.remove(output.request)
    assert peak == 4


async def test_an_abort_frees_everything_and_silences_the_request(llama: Driver) -> None:
    request = llama.submit(stream=True, max_tokens=4000)
    await llama.until(lambda: len(llama.answer(request).outputs) > 3)
    assert llama.engine.load.running == 1
    assert llama.engine.load.kv_bytes > 0
    llama.engine.abort(request)
    seen = len(llama.answer(request).outputs)
    await llama.settle()
    load = llama.engine.load
    assert (load.running, load.waiting, load.kv_bytes) == (0, 0, 0)
    assert len(llama.answer(request).outputs) == seen
    assert (await llama.run(max_tokens=2)).reply.status == 200


async def test_a_waiting_request_can_be_aborted(llama: Driver) -> None:
    llama.engine.hold(True)
    request = llama.submit()
    llama.engine.abort(request)
    llama.engine.abort(12345)
    llama.engine.hold(False)
    await llama.settle()
    assert llama.answer(request).outputs == []
    assert llama.engine.load.waiting == 0


async def test_a_held_engine_decodes_nothing(llama: Driver) -> None:
    request = llama.submit(stream=True, max_tokens=4000)
    await llama.until(lambda: len(llama.answer(request).outputs) > 3)
    llama.engine.hold(True)
    await llama.settle()
    tokens = llama.engine.load.output_tokens
    await llama.settle()
    assert llama.engine.load.output_tokens == tokens
    llama.engine.hold(False)
    await llama.until(lambda: llama.engine.load.output_tokens > tokens)
    llama.engine.abort(request)


KV_PER_TOKEN = 4 * 2 * 2 * 64 * 4
"""Bytes: layers, keys and values, KV heads, head size, float32."""


async def test_requests_wait_for_kv_cache_and_get_it(llama: Driver) -> None:
    llama.engine.set_kv_limit(1, KV_PER_TOKEN * 100)
    prompt = [5] * 10
    requests = [llama.submit(prompt=prompt, max_tokens=50, stream=True) for _ in range(3)]
    for request in requests:
        assert isinstance((await llama.finish(request)).outputs[-1], Done)
    order = [output for output in llama.log if isinstance(output, (Head, Done))]
    assert [type(output) for output in order] == [Head, Done] * 3
    assert llama.log[0] == KvLimitApplied(1, 0)


async def test_what_never_fits_the_kv_cache_is_refused(llama: Driver) -> None:
    llama.engine.set_kv_limit(1, KV_PER_TOKEN * 100)
    answered = await llama.run(prompt=[5] * 10, max_tokens=91, stream=True)
    assert answered.reply.status == 400
    assert answered.body["error"]["param"] == "max_tokens"


async def test_a_chat_without_max_tokens_takes_what_kv_cache_there_is(llama: Driver) -> None:
    llama.engine.set_kv_limit(1, KV_PER_TOKEN * 30)
    usage = (await llama.run(CHAT, messages=[{"role": "user", "content": "Hello"}])).body["usage"]
    assert usage["total_tokens"] <= 30


async def test_a_smaller_limit_is_applied_once_it_holds(llama: Driver) -> None:
    request = llama.submit(prompt=[5] * 10, max_tokens=30, stream=True)
    await llama.until(lambda: len(llama.answer(request).outputs) > 2)
    llama.engine.set_kv_limit(1, KV_PER_TOKEN * 20)
    await llama.finish(request)
    await llama.until(lambda: isinstance(llama.log[-1], KvLimitApplied))
    kinds = [type(output) for output in llama.log if isinstance(output, (Done, KvLimitApplied))]
    assert sorted(map(str, kinds)) == sorted(map(str, [Done, KvLimitApplied]))
    assert llama.log[-1] == KvLimitApplied(1, 0)


async def test_a_failing_step_ends_its_request_alone(llama: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = TransformersSkeleton.forward

    def fail_after_long_prompts(self: TransformersSkeleton, tokens: Any, cache: Any) -> torch.Tensor:
        if len(tokens) == 1 and cache.get_seq_length() in range(100, 110):
            raise RuntimeError("broken on purpose")
        return forward(self, tokens, cache)

    monkeypatch.setattr(TransformersSkeleton, "forward", fail_after_long_prompts)
    fine = llama.submit(max_tokens=20)
    streamed = llama.submit(prompt=[5] * 100, stream=True, max_tokens=9)
    whole = llama.submit(prompt=[5] * 100, max_tokens=9)
    last = (await llama.finish(streamed)).outputs[-1]
    assert isinstance(last, Done)
    assert last.error
    assert (await llama.finish(whole)).reply.status == 500
    assert "broken on purpose" not in (await llama.finish(whole)).reply.body.decode()
    assert (await llama.finish(fine)).reply.status == 200
    await llama.settle()
    assert llama.engine.load.kv_bytes == 0


# weights


async def test_weights_are_read_only_views_of_the_segment(driver: Driver, stored: dict[str, Stored]) -> None:
    await driver.activate(stored["qwen3-tiny"])
    (line,) = mapped_segments()
    addresses, permissions = line.split()[:2]
    assert permissions == "r--s"
    first, last = (int(address, 16) for address in addresses.split("-"))
    skeleton = driver.engine._slot.active
    assert skeleton is not None
    tensors = {**dict(skeleton.module.named_parameters()), **dict(skeleton.module.named_buffers())}
    assert len(tensors) > 40
    assert all(first <= tensor.data_ptr() < last for tensor in tensors.values())


@pytest.mark.parametrize("name", NAMES)
async def test_parking_unmaps_the_weights_and_reviving_brings_them_back(
    driver: Driver, stored: dict[str, Stored], name: str
) -> None:
    phases = await driver.activate(stored[name])
    assert {"map", "skeleton", "tokenizer", "assign"} == set(phases)
    before = (await driver.run()).body["choices"]
    assert await driver.engine.park() == name
    assert mapped_segments() == []
    assert set(await driver.activate(stored[name])) == {"map", "assign"}
    assert (await driver.run()).body["choices"] == before


async def test_another_model_takes_a_parked_ones_place_and_back(driver: Driver, stored: dict[str, Stored]) -> None:
    answers: dict[str, list[Any]] = {name: [] for name in NAMES}
    for name in NAMES * 2:
        await driver.activate(stored[name])
        answers[name].append((await driver.run()).body["choices"])
        assert len(mapped_segments()) == 1
        await driver.engine.park()
    assert all(first == second for first, second in answers.values())
    assert len({str(both) for both in answers.values()}) == 3


async def test_blanking_leaves_nothing(driver: Driver, stored: dict[str, Stored]) -> None:
    await driver.activate(stored["llama-tiny"])
    await driver.engine.park()
    await driver.engine.blank()
    assert mapped_segments() == []
    assert "skeleton" in await driver.activate(stored["llama-tiny"])


async def test_verifying_catches_a_changed_byte(driver: Driver, stored: dict[str, Stored]) -> None:
    model = stored["llama-tiny"]
    damaged = create("damaged", model.manifest.nbytes)
    intact = open_segment(model.segment.ref)
    with damaged.view() as target, intact.view() as source:
        target[:] = source
        target[model.manifest.tensors[3].offset] ^= 1
    intact.close()
    wrong = f"checksum of {model.manifest.tensors[3].name} is wrong"
    with damaged.seal() as segment, pytest.raises(StoreError, match=wrong):
        await driver.engine.activate(model.spec, model.manifest, segment.ref, True)
    assert mapped_segments() == []
    assert "verify" in await driver.activate(model, verify=True)


async def test_weights_of_another_model_are_refused(driver: Driver, stored: dict[str, Stored]) -> None:
    llama, qwen = stored["llama-tiny"], stored["qwen3-tiny"]
    with pytest.raises(EngineError, match=r"llama-tiny: the model has no tensor model\.layers\.0\.self_attn\.q_norm"):
        await driver.engine.activate(llama.spec, qwen.manifest, qwen.segment.ref, False)
    assert mapped_segments() == []
    await driver.activate(llama)


async def test_a_tensor_without_data_is_refused_by_name(driver: Driver, stored: dict[str, Stored]) -> None:
    model = stored["llama-tiny"]
    missing = model.manifest.tensors[-1]
    manifest = msgspec.structs.replace(model.manifest, tensors=model.manifest.tensors[:-1])
    with pytest.raises(EngineError, match=f"llama-tiny: the segment holds no data for {missing.name}"):
        await driver.engine.activate(model.spec, manifest, model.segment.ref, False)


async def test_a_folder_that_is_gone_is_an_error_and_leaves_the_engine_blank(
    driver: Driver, stored: dict[str, Stored], tmp_path: Path
) -> None:
    model = stored["llama-tiny"]
    spec = msgspec.structs.replace(model.spec, path=str(tmp_path / "gone"))
    with pytest.raises(EngineError, match="llama-tiny: cannot build the model"):
        await driver.engine.activate(spec, model.manifest, model.segment.ref, False)
    assert mapped_segments() == []
    await driver.activate(model)


FORKS = """
import asyncio, json, os, sys
from enginepool.engines.transformers import TransformersEngine, warm
from enginepool.engines.transformers.weights import load
from enginepool.messages import ModelSpec, Reply, Submit

warm()
assert len(os.listdir("/proc/self/task")) == 1, "warming has started a thread"
spec = ModelSpec("llama", sys.argv[1], "auto", {})
manifest, segment = load(spec, lambda done, total: None)

def shared():
    figures, found = {}, False
    for line in open("/proc/self/smaps"):
        head = line.split()
        if not head[0].endswith(":"):
            found = "memfd:prism-llama" in line
        elif found and head[0] in ("Rss:", "Private_Clean:", "Private_Dirty:", "Anonymous:"):
            figures[head[0]] = figures.get(head[0], 0) + int(head[1])
    return figures

async def serve(inbox, outbox):
    done = asyncio.get_running_loop().create_future()
    emit = lambda output: done.set_result(output) if isinstance(output, Reply) else None
    engine = TransformersEngine(emit, max_running=4, threads=2)
    await engine.activate(spec, manifest, segment.ref, False)
    engine.submit(Submit(1, "/v1/completions", b'{"model":"m","prompt":"Hi","temperature":0}', 0.0))
    text = json.loads((await done).body)["choices"][0]["text"]
    os.write(outbox, b"x")
    os.read(inbox, 1)  # both have used the weights, both still map them
    os.write(1, json.dumps([text, shared(), manifest.nbytes]).encode() + b"\\n")  # whole, beside the other child's
    os.write(outbox, b"x")
    os.read(inbox, 1)
    await engine.close()

pipes = [(os.pipe(), os.pipe()) for _ in range(2)]
for (inbox, _), (_, outbox) in pipes:
    if os.fork() == 0:
        asyncio.run(serve(inbox, outbox))
        os._exit(0)
for turn in range(2):
    for _, (heard, _) in pipes:
        os.read(heard, 1)
    for (_, told), _ in pipes:
        os.write(told, b"x")
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in pipes])
"""


def test_two_workers_forked_from_a_warm_process_share_one_copy_of_the_weights(demo_folder: Path) -> None:
    command = [sys.executable, "-c", FORKS, str(demo_folder / "llama-tiny")]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert finished.returncode == 0, finished.stderr
    *workers, exits = map(json.loads, finished.stdout.splitlines())
    assert exits == [0, 0]
    (one, figures, nbytes), (two, others, _) = workers
    assert one == two != ""
    for each in (figures, others):
        assert each["Rss:"] * 1024 > nbytes * 0.5
        assert each["Anonymous:"] == 0, "a page of the weights was copied"
        # Pages that only one of the two happens to have mapped by now count as its private ones, copied or not.
        assert (each["Private_Clean:"] + each["Private_Dirty:"]) * 1024 < nbytes * 0.1
