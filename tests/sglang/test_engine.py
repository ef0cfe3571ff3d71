"""SGLang on the CPU in real workers: right tokens, right order, one model after another, and nothing left over."""

from __future__ import annotations

import asyncio
import ctypes
import importlib.metadata
import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from config.errors import EngineError
from config.registry import PoolConfig
from enginepool.engines.sglang import upstream
from enginepool.messages import (
    Chunk,
    Counted,
    Done,
    FromWorker,
    Head,
    KvLimitApplied,
    ModelSpec,
    Ping,
    Pong,
    Reply,
    SetKvLimit,
    WorkerActivated,
    WorkerCopied,
    WorkerReady,
    WorkerStats,
)
from enginepool.pool.forks import Child, ForkServer
from gateway.demo_models import CONTEXT, NAMES, VOCABULARY
from tests.rig.models import Stored
from tests.rig.serving import PATIENCE
from tests.rig.sglang_models import COMPLETIONS, LENGTH, MAX_RUNNING, NEEDS_SGLANG, PROMPT, Worker

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG, pytest.mark.asyncio(loop_scope="session")]

PTRACE_ATTACH = 16
ENDLESS = CONTEXT - 100
"""Tokens of an answer that is still under way when its test is over."""
IDLE_WINDOW = 3.0
"""Seconds over which an idle worker's CPU time is measured."""


@pytest.fixture
def worker(sglang_worker: Worker) -> Worker:
    return sglang_worker


@pytest_asyncio.fixture(loop_scope="session")
async def llama(worker: Worker, sglang_stored: dict[str, Stored]) -> Worker:
    await worker.activate(sglang_stored["llama-tiny"])
    return worker


def belongings(worker: Worker) -> list[tuple[int, int]]:
    """Open files and threads of front and rank."""
    return [(it.num_fds(), it.num_threads()) for it in (worker.front, worker.rank)]


def model_folders(worker: Worker, sglang_run_dir: Path) -> list[Path]:
    return list(sglang_run_dir.glob(f"sgl-{worker.child.pid}-*"))


# one model after another


async def test_one_worker_serves_three_models_in_turn(
    worker: Worker, sglang_stored: dict[str, Stored], sglang_answers: dict[str, str], sglang_run_dir: Path
) -> None:
    for name in (*NAMES, *NAMES):
        phases = await worker.activate(sglang_stored[name])
        assert list(phases) == ["teardown", "arguments", "scheduler", "model", "kv_cache", "copy", "tokenizer"]
        copied, activated = [it for it in worker.log if isinstance(it, (WorkerCopied, WorkerActivated))][-2:]
        assert isinstance(copied, WorkerCopied), "the link was free before all was built"
        assert isinstance(activated, WorkerActivated)
        assert await worker.complete() == sglang_answers[name]
        assert len(model_folders(worker, sglang_run_dir)) == 1
        await worker.park()
    await worker.blank()
    assert model_folders(worker, sglang_run_dir) == []


async def test_nothing_of_a_model_is_left_in_its_worker(worker: Worker, sglang_stored: dict[str, Stored]) -> None:
    """The rank itself checks that Scheduler, runner, model and KV pool are gone; else the worker would have ended."""
    found = []
    for _ in range(5):
        await worker.activate(sglang_stored["llama-tiny"])
        await worker.complete()
        await worker.park()
        await worker.blank()
        found.append(belongings(worker))
    assert found[1:] == [found[1]] * 4


async def test_a_parked_model_comes_back_as_it_was(llama: Worker, sglang_stored: dict[str, Stored]) -> None:
    rank = llama.rank.pid
    before = await llama.complete()
    for _ in range(3):
        await llama.park()
        assert list(await llama.activate(sglang_stored["llama-tiny"])) == ["kv_limit", "resume", "copy"]
        assert await llama.complete() == before
    assert llama.rank.pid == rank


async def test_a_parked_worker_answers_503(llama: Worker) -> None:
    await llama.park()
    assert (await llama.ask()).status == 503


@pytest.mark.parametrize("damage", ["weights", "config", "tokenizer"])
async def test_a_broken_model_fails_and_the_worker_lives(
    worker: Worker,
    sglang_stored: dict[str, Stored],
    sglang_answers: dict[str, str],
    tmp_path: Path,
    sglang_run_dir: Path,
    damage: str,
) -> None:
    model = sglang_stored["llama-tiny"]
    folder = shutil.copytree(model.spec.path, tmp_path / "broken")
    broken = replace(model, spec=ModelSpec("broken", str(folder), "float32", {}))
    match damage:
        case "weights":
            other = sglang_stored["qwen3-tiny"]
            broken = replace(broken, manifest=other.manifest, segment=other.segment)
        case "config":
            (folder / "config.json").write_text('{"architectures": ["Unheard"], "model_type": "unheard"}')
        case "tokenizer":
            (folder / "tokenizer.json").write_text("{}")
    rank = worker.rank.pid
    assert await worker.fail_to_activate(broken)
    assert model_folders(worker, sglang_run_dir) == []
    await worker.activate(model)
    assert await worker.complete() == sglang_answers["llama-tiny"]
    assert worker.rank.pid == rank


async def test_a_model_whose_kv_cache_is_not_guarded_is_refused(
    worker: Worker, sglang_stored: dict[str, Stored], sglang_answers: dict[str, str]
) -> None:
    """No registry can ask for it, but some of SGLang's attention backends insist."""
    model, rank = sglang_stored["llama-tiny"], worker.rank.pid
    paged = replace(model, spec=ModelSpec("paged", model.spec.path, "float32", {"page_size": 16}))
    assert await worker.fail_to_activate(paged) == "paged: torch_native uses KV pages of 16 tokens; only 1 is supported"
    await worker.activate(model)
    assert await worker.complete() == sglang_answers["llama-tiny"]
    assert worker.rank.pid == rank


# requests


async def test_a_stream_is_head_chunks_done(llama: Worker, sglang_answers: dict[str, str]) -> None:
    request = llama.submit(stream=True)
    await llama.until(lambda: llama.ended(request))
    counted, head, *chunks, done = llama.outputs(request)
    assert isinstance(counted, Counted)
    assert counted.prompt_tokens > 0
    assert head == Head(request, 200, "text/event-stream")
    assert done == Done(request, counted.prompt_tokens, LENGTH, "")
    data = [it.data for it in chunks if isinstance(it, Chunk)]
    assert len(data) == len(chunks)
    assert data.pop() == b"data: [DONE]\n\n"
    events = [json.loads(it.removeprefix(b"data: ")) for it in data]
    assert all(it.endswith(b"\n\n") for it in data)
    assert "".join(event["choices"][0]["text"] for event in events) == sglang_answers["llama-tiny"]


@pytest.mark.parametrize("fields", [{}, {"n": 3, "temperature": 1}, {"prompt": ["Once upon", "A gate opens"]}])
async def test_tokens_are_counted_as_sglang_counts_them(llama: Worker, fields: dict[str, Any]) -> None:
    reply = await llama.ask(**fields)
    usage = json.loads(reply.body)["usage"]
    assert (reply.prompt_tokens, reply.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])


async def test_requests_start_in_the_order_of_their_deadlines(llama: Worker) -> None:
    running = [llama.submit(stream=True, max_tokens=ENDLESS, ignore_eos=True) for _ in range(MAX_RUNNING)]
    await llama.until(lambda: all(llama.began(it) for it in running))
    # What a client asks for in its own favour changes nothing.
    late, soon, later = (llama.submit(deadline=it, priority=-int(it)) for it in (20.0, 10.0, 30.0))
    await llama.until(lambda: all(llama.outputs(it) for it in (late, soon, later)))
    llama.abort(running[0])
    await llama.until(lambda: all(llama.ended(it) for it in (late, soon, later)))
    assert [it.request for it in llama.log if isinstance(it, Reply)] == [soon, late, later]
    assert not llama.ended(running[1]), "running streams stay"


async def test_no_client_chooses_an_id(llama: Worker) -> None:
    first, second = [llama.submit(rid="my-own-id", max_tokens=ENDLESS, ignore_eos=True, stream=True) for _ in range(2)]
    await llama.until(lambda: llama.began(first) and llama.began(second))
    assert not any(b"my-own-id" in it.data for it in llama.log if isinstance(it, Chunk))


async def test_an_abort_frees_the_engine_at_once(llama: Worker, sglang_answers: dict[str, str]) -> None:
    running = [llama.submit(stream=True, max_tokens=ENDLESS, ignore_eos=True) for _ in range(MAX_RUNNING)]
    await llama.until(lambda: all(llama.began(it) for it in running))
    waiting = llama.submit()
    for request in running:
        llama.abort(request)
    await llama.until(lambda: llama.ended(waiting))
    aborted = [len(llama.outputs(it)) for it in running]
    await llama.park()  # it waits until the rank is idle
    await llama.until(lambda: stats(llama) == (0, 0))
    assert [len(llama.outputs(it)) for it in running] == aborted
    assert not any(llama.ended(it) for it in running)


async def test_an_abort_right_after_the_request_leaves_nothing(llama: Worker) -> None:
    for _ in range(20):
        llama.abort(llama.submit(max_tokens=ENDLESS, ignore_eos=True))
    await llama.complete()
    await llama.park()
    await llama.until(lambda: stats(llama) == (0, 0))


async def test_the_load_is_reported(llama: Worker) -> None:
    requests = [llama.submit(stream=True, max_tokens=ENDLESS, ignore_eos=True) for _ in range(MAX_RUNNING + 1)]
    await llama.until(lambda: stats(llama) == (MAX_RUNNING, 1))
    await llama.until(lambda: reports(llama)[-1].kv_bytes > 0)
    await llama.until(lambda: any(it.prefill_rate > 0 for it in reports(llama)))
    await llama.until(lambda: reports(llama)[-1].decode_rate > 0)
    await llama.until(lambda: reports(llama)[-1].batch == MAX_RUNNING)
    for request in requests:
        llama.abort(request)
    await llama.until(lambda: stats(llama) == (0, 0))
    await llama.park()
    await llama.until(lambda: reports(llama)[-1].kv_bytes == 0)
    await llama.until(lambda: reports(llama)[-1].batch == 0)
    last = reports(llama)[-1]
    assert (last.device_used, last.process_used) == (0, None), "there is no GPU"
    assert last.prompt_tokens > 0
    assert last.output_tokens > 0


def stats(worker: Worker) -> tuple[int, int]:
    """Running and waiting requests, as last reported."""
    found = reports(worker)
    return (found[-1].running, found[-1].waiting) if found else (-1, -1)


def reports(worker: Worker) -> list[WorkerStats]:
    return [it for it in worker.log if isinstance(it, WorkerStats)]


@pytest.mark.parametrize(
    "path",
    [
        "/flush_cache",
        "/update_weights_from_disk",
        "/release_memory_occupation",
        "/abort_request",
        "/start_profile",
        "/server_info",
        "/health",
        "/v1/models",
        "/docs",
        "/v1/chat/completions/../../flush_cache",
    ],
)
async def test_only_inference_is_reachable(llama: Worker, path: str) -> None:
    reply = await llama.ask(path)
    assert reply.status == 404
    assert json.loads(reply.body)["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [COMPLETIONS, "/v1/chat/completions", "/generate"])
async def test_a_prompt_that_is_too_long_never_reaches_the_rank(
    llama: Worker, sglang_answers: dict[str, str], path: str, stream: bool
) -> None:
    text = "word " * CONTEXT
    reply = await llama.ask(path, prompt=text, text=text, messages=[{"role": "user", "content": text}], stream=stream)
    assert reply.status == 400
    assert b"longer than" in reply.body
    assert reply.prompt_tokens == reply.output_tokens == 0
    assert await llama.complete() == sglang_answers["llama-tiny"]


async def test_generate_is_sglangs_own(llama: Worker, sglang_answers: dict[str, str]) -> None:
    sampling = {"temperature": 0, "max_new_tokens": LENGTH}
    reply = await llama.ask("/generate", text=PROMPT, sampling_params=sampling, http_worker_ipc="ipc:///elsewhere")
    assert json.loads(reply.body)["text"] == sglang_answers["llama-tiny"]


async def test_bad_requests_are_refused_by_sglang_itself(llama: Worker) -> None:
    assert (await llama.ask(prompt=None)).status == 400
    assert (await llama.ask(max_tokens="many")).status == 400
    assert (await llama.ask(temperature=-1)).status == 400


GENERATE, CHAT_PATH = "/generate", "/v1/chat/completions"
HUGE = 10**9


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (COMPLETIONS, {"prompt": [VOCABULARY, 1]}, "input_ids"),
        (GENERATE, {"input_ids": [1, -1]}, "input_ids"),
        (GENERATE, {"input_ids": [[1, 2], [HUGE]]}, "input_ids"),
        (COMPLETIONS, {"logprobs": 100_000}, "top_logprobs_num"),
        (CHAT_PATH, {"logprobs": True, "top_logprobs": 10_000}, "top_logprobs_num"),
        (CHAT_PATH, {"logit_bias": {"5": 1e308}}, "logit_bias"),
        (CHAT_PATH, {"top_k": 2**70}, "top_k"),
        (CHAT_PATH, {"seed": 2**70}, "'seed'"),
        (CHAT_PATH, {"stop_token_ids": [HUGE], "min_tokens": 2}, "stop_token_ids"),
        (CHAT_PATH, {"stop_regex": "(a+)+c"}, "stop_regex"),
        (CHAT_PATH, {"n": -1}, "n must be"),
        (GENERATE, {"return_logprob": True, "logprob_start_len": -2}, "logprob_start_len"),
        (GENERATE, {"input_embeds": [[1.0, 2.0]]}, "input_embeds"),
        (GENERATE, {"sampling_params": {"sampling_seed": 2**70}}, "sampling_seed"),
        (GENERATE, {"sampling_params": {"max_new_tokens": 2.5}}, "max_new_tokens"),
        (GENERATE, {"sampling_params": {"json_schema": {}}}, "json_schema"),
        (GENERATE, {"sampling_params": {"logit_bias": [1]}}, "logit_bias"),
        (GENERATE, {"sampling_params": {"stream_interval": "x"}}, "stream_interval"),
        (GENERATE, {"sampling_params": {"skip_special_tokens": "y"}}, "skip_special_tokens"),
        (GENERATE, {"sampling_params": {"is_normalized": True}}, "is_normalized"),
        (GENERATE, {"sampling_params": [{"max_new_tokens": 2}]}, "malformed"),
    ],
)
async def test_what_would_end_the_rank_is_refused_before(
    llama: Worker, sglang_answers: dict[str, str], path: str, fields: dict[str, Any], named: str
) -> None:
    rank = llama.rank.pid
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]} if path == CHAT_PATH else {}
    asked |= {"text": PROMPT} if path == GENERATE and not {"input_ids", "input_embeds"} & {*fields} else {}
    reply = await llama.ask(path, **asked, **fields)
    assert (reply.status, named in reply.body.decode()) == (400, True), reply
    assert await llama.complete() == sglang_answers["llama-tiny"]
    assert llama.rank.pid == rank


async def test_a_grammar_that_fails_late_ends_its_own_request_only(
    llama: Worker, sglang_answers: dict[str, str]
) -> None:
    rank, beside = llama.rank.pid, asyncio.create_task(llama.complete())
    sampling = {"max_new_tokens": LENGTH, "regex": "(a{1000}){1000}"}
    reply = await llama.ask(GENERATE, text=PROMPT, sampling_params=sampling)
    assert b'"abort"' in reply.body
    assert await beside == sglang_answers["llama-tiny"]
    assert llama.rank.pid == rank


async def test_a_grammar_that_fails_its_trial_is_refused_by_name(llama: Worker, sglang_answers: dict[str, str]) -> None:
    rank, beside = llama.rank.pid, asyncio.create_task(llama.complete())
    sampling = {"max_new_tokens": LENGTH, "json_schema": '{"$ref": "#"}'}
    reply = await llama.ask(GENERATE, text=PROMPT, sampling_params=sampling)
    assert (reply.status, b"json_schema" in reply.body) == (400, True)
    assert await beside == sglang_answers["llama-tiny"]
    assert llama.rank.pid == rank


async def test_a_kv_limit_is_answered(llama: Worker) -> None:
    llama.child.channel.send(SetKvLimit(7, 2**26))
    applied = await llama.next(KvLimitApplied)
    assert isinstance(applied, KvLimitApplied)
    assert applied.revision == 7
    assert 0 < applied.mapped <= 2**26


# processes


async def test_an_idle_worker_does_not_spin(worker: Worker, sglang_stored: dict[str, Stored]) -> None:
    used = {"blank": await idle_share(worker)}
    await worker.activate(sglang_stored["llama-tiny"])
    await worker.complete()
    used["active"] = await idle_share(worker)
    await worker.park()
    used["parked"] = await idle_share(worker)
    # Less than 0.01 each on a quiet machine; a loop that polls, let alone spins, takes far more than this on any.
    assert max(used.values()) < 0.1, used


async def idle_share(worker: Worker) -> float:
    """CPU seconds of front and rank per second."""
    processes = [worker.front, worker.rank]
    before = sum(cpu_seconds(it) for it in processes)
    await asyncio.sleep(IDLE_WINDOW)
    return (sum(cpu_seconds(it) for it in processes) - before) / IDLE_WINDOW


def cpu_seconds(of: psutil.Process) -> float:
    times = of.cpu_times()
    return times.user + times.system


async def test_a_worker_ends_with_its_rank(llama: Worker, sglang_run_dir: Path) -> None:
    llama.rank.kill()
    async with asyncio.timeout(PATIENCE):
        await asyncio.shield(llama.child.exited)
    assert model_folders(llama, sglang_run_dir) == []


async def test_a_rank_dies_with_its_worker(llama: Worker) -> None:
    rank = llama.rank
    os.kill(llama.child.pid, signal.SIGKILL)
    psutil.wait_procs([rank], timeout=PATIENCE)
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
    async with asyncio.timeout(PATIENCE):
        await asyncio.shield(llama.child.exited)


@pytest.mark.parametrize("state", ["serving", "blank", "debugged"])
async def test_a_rank_that_is_stopped_ends_with_its_worker(
    sglang_run_dir: Path, sglang_stored: dict[str, Stored], state: str
) -> None:
    """The front answers, so that nobody but itself can tell. One that a debugger holds only says nothing any more."""
    forks = ForkServer(PoolConfig(engine="sglang", silence=0.1, heartbeat=0.05, kv_memory=2**26), sglang_run_dir)
    await forks.start()
    try:
        child: Child[FromWorker] = await forks.fork("worker", "worker", "cpu", FromWorker)
        worker = Worker(child)
        await worker.until(lambda: any(isinstance(it, WorkerReady) for it in worker.log))
        rank = worker.rank
        if state != "blank":
            await worker.activate(sglang_stored["llama-tiny"])
            worker.submit(max_tokens=ENDLESS)
        if state == "debugged":
            attach_to(rank)
        else:
            rank.suspend()
        async with asyncio.timeout(PATIENCE):
            await child.gone  # which the rank is not yet when its front has ended
        assert not rank.is_running()
    finally:
        await forks.stop()


def attach_to(process: psutil.Process) -> None:
    """By ptrace(2): it stands still, and no signal has stopped it."""
    assert ctypes.CDLL(None, use_errno=True).ptrace(PTRACE_ATTACH, process.pid, None, None) == 0, ctypes.get_errno()


async def test_sglang_takes_no_signal_handler_of_the_worker(llama: Worker) -> None:
    await llama.complete()
    llama.child.channel.send(Ping(1))
    assert await llama.next(Pong) == Pong(1)
    os.kill(llama.child.pid, signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.shield(llama.child.exited) == "killed by SIGTERM"


# versions


@pytest.mark.parametrize("version", ["0.5.14", "0.6.0"])
async def test_another_version_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: version)
    with pytest.raises(EngineError, match=rf"needs SGLang 0\.5\.17; {version} is installed"):
        upstream.check_version()
