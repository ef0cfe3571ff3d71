"""Failures that really happen: processes are killed and stopped, clients go away, files are broken, memory is short.

Each part of this file is a row of the failure table in docs/faults.md. States are held open by the simulated
engine's settings: a long `ttft` is a request without its first byte, ENDLESS tokens are a stream that still runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from gateway.report import Status, WorkerStatus
from tests.rig.asking import CHAT, COMPLETIONS, ENDLESS, HELLO, Answer, ask, chat, connect
from tests.rig.serving import PATIENCE, Prism, ServePrism, simulated

HELD = 3600.0
"""Seconds: a prefill or activation that is still under way when its test is over."""

InBackground = Callable[..., "Future[Answer]"]
Property = Callable[[str, object], None]


@pytest.fixture
def in_background() -> Iterator[InBackground]:
    """Asks from a thread: `in_background(chat, prism, "a")` returns the answer's future."""
    with ThreadPoolExecutor(max_workers=16) as threads:
        yield threads.submit


def pool(*, workers: int = 2, running: int = 16, **engine_args: float) -> dict[str, Any]:
    return {"workers_per_device": workers, "max_running": running, "engine_args": {"tpot": 0.01, **engine_args}}


class Client:
    """A client that has sent its request, and need not wait for the answer."""

    def __init__(self, prism: Prism, model: str, **fields: Any) -> None:
        self._connection = connect(prism)
        self._connection.request("POST", CHAT, json.dumps({"model": model, "messages": HELLO, **fields}))

    def begin(self) -> Client:
        """Wait until the answer's first event is here."""
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        assert self._response.readline().startswith(b"data: ")
        return self

    def next(self) -> bytes:
        """The next line that is not empty."""
        while not (line := self._response.readline().strip()):
            continue
        return line

    def rest(self) -> list[Any]:
        """What comes until the stream's regular end, without the [DONE]."""
        lines = self._response.read().splitlines()
        self.disconnect()
        return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: {")]

    def whole(self) -> Answer:
        response = self._connection.getresponse()
        answer = Answer(response.status, response.headers, response.read())
        self.disconnect()
        return answer

    def disconnect(self) -> None:
        self._connection.close()


def stream(prism: Prism, model: str, max_tokens: int = ENDLESS) -> Client:
    return Client(prism, model, stream=True, max_tokens=max_tokens).begin()


def ends_with_error(client: Client, code: str) -> dict[str, Any]:
    """The stream ends in order, with an error event as its last one."""
    error: dict[str, Any] = client.rest()[-1]["error"]
    assert error["code"] == code
    return error


def kill_worker(prism: Prism, number: int, how: signal.Signals = signal.SIGKILL) -> int:
    """Returns the process id that it had."""
    pid = prism.pid(number)
    os.kill(pid, how)
    return pid


def wait_for_replacement(prism: Prism, number: int, pid: int) -> WorkerStatus:
    """Wait until a worker's process is another one, and up."""

    def is_up(status: Status) -> bool:
        worker = status.workers[number]
        return worker.pid not in (None, pid) and worker.state != "starting"

    return prism.wait_until(is_up, f"worker {number} is replaced").workers[number]


def wait_for_running(prism: Prism, model: str) -> int:
    """Wait until one of the model's requests is on a worker; returns the worker's number."""

    def running(status: Status) -> list[int]:
        return [w.worker for w in status.workers if w.model == model and w.running]

    return running(prism.wait_until(lambda status: bool(running(status)), f"a request of {model} runs"))[0]


def wait_for_state(prism: Prism, model: str, state: str) -> int:
    """Wait until a worker is in `state` with `model`; returns the worker's number."""

    def found(status: Status) -> list[int]:
        return [w.worker for w in status.workers if w.model == model and w.state == state]

    return found(prism.wait_until(lambda status: bool(found(status)), f"{model} is {state}"))[0]


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=PATIENCE)
    left = [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"still there: {left}"


def nothing_in_flight(prism: Prism) -> None:
    def holds(status: Status) -> bool:
        running = sum(worker.running for worker in status.workers)
        return status.in_flight == status.waiting == running == 0

    prism.wait_until(holds, "nothing is in flight")


# --- what is no request: 404, 400, 413 at once, and nothing reaches a worker ----------------------------------------


NO_REQUESTS: list[tuple[Any, int, str]] = [
    ({"model": "unknown", "messages": HELLO}, 404, "model_not_found"),
    ({"messages": HELLO}, 400, "missing_required_parameter"),
    (b'{"model": "a", "messages": [', 400, "invalid_json"),
    (b"\xff\xfe", 400, "invalid_json"),
    (b'{"model": "a", "prompt": "' + b"x" * 5000 + b'"}', 413, "body_too_large"),
]
"""Body, and what it is answered with."""


def test_what_is_no_request_never_reaches_a_worker(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=pool(), gateway={"limits": {"max_body": 4096}}))
    for body, expected, code in NO_REQUESTS:
        answer = ask(prism, "POST", CHAT, body)
        assert (answer.status, answer.error["code"]) == (expected, code)
    usage = chat(prism, "a", max_tokens=1).json["usage"]

    def prompt_tokens(status: Status) -> int:
        return sum(worker.prompt_tokens for worker in status.workers)

    status = prism.wait_until(lambda status: prompt_tokens(status) > 0, "the workers have counted")
    assert prompt_tokens(status) == usage["prompt_tokens"]
    assert [worker.restarts for worker in status.workers] == [0, 0]


# --- client disconnects: the abort reaches the engine, the slot is free ---------------------------------------------


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_client_that_goes_away_frees_the_engines_only_slot(serve_prism: ServePrism, streamed: bool) -> None:
    prism = serve_prism(simulated("a", pool=pool(workers=1, running=1)))
    client = Client(prism, "a", stream=streamed, max_tokens=ENDLESS)
    if streamed:
        client.begin()
    wait_for_running(prism, "a")
    client.disconnect()
    nothing_in_flight(prism)
    # The engine itself runs one request at a time: it answers only if the abort has reached it.
    assert chat(prism, "a", max_tokens=3).status == 200


def test_a_client_that_goes_away_while_it_waits_is_never_served(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=pool(workers=1, running=1)))
    running = stream(prism, "a")
    waiting = Client(prism, "a", max_tokens=1)
    prism.wait_until(lambda status: status.waiting == 1, "one waits")
    waiting.disconnect()
    prism.wait_until(lambda status: status.waiting == 0 and status.in_flight == 1, "it waits no more")
    running.disconnect()
    nothing_in_flight(prism)
    assert chat(prism, "a", max_tokens=3).status == 200


def test_a_client_that_goes_away_during_an_activation(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=pool(workers=1, activation=1.0)))
    client = Client(prism, "a")
    wait_for_state(prism, "a", "activating")
    client.disconnect()
    nothing_in_flight(prism)
    wait_for_state(prism, "a", "active")
    assert prism.worker(0).output_tokens == 0
    assert chat(prism, "a", max_tokens=3).status == 200


# --- worker dies before the first byte: the request is served elsewhere ---------------------------------------------


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])
def test_a_worker_that_dies_before_the_first_byte(
    serve_prism: ServePrism, in_background: InBackground, streamed: bool, record_property: Property
) -> None:
    prism = serve_prism(simulated("a", pool=pool(ttft=1.0)))
    answer = in_background(chat, prism, "a", max_tokens=3, stream=streamed)
    victim = wait_for_running(prism, "a")
    began = time.monotonic()
    pid = kill_worker(prism, victim)
    wait_for_replacement(prism, victim, pid)
    record_property("replaced_s", time.monotonic() - began)
    assert answer.result().status == 200
    if streamed:
        assert answer.result().events[-1]["choices"][0]["finish_reason"] == "length"
    assert prism.worker(victim).restarts == 1


def test_a_worker_that_dies_during_an_activation(serve_prism: ServePrism, in_background: InBackground) -> None:
    prism = serve_prism(simulated("a", pool=pool(activation=1.0)))
    answer = in_background(chat, prism, "a", max_tokens=3)
    pid = kill_worker(prism, victim := wait_for_state(prism, "a", "activating"))
    assert answer.result().status == 200
    wait_for_replacement(prism, victim, pid)


def test_an_operator_hears_that_the_worker_died_during_his_activation(
    serve_prism: ServePrism, in_background: InBackground
) -> None:
    prism = serve_prism(simulated("a", pool=pool(activation=HELD)))
    result = in_background(prism.command, "activate", model="a", worker=1)
    wait_for_state(prism, "a", "activating")
    kill_worker(prism, 1)
    assert not result.result().ok  # type: ignore[attr-defined]
    assert "killed by SIGKILL" in result.result().text  # type: ignore[attr-defined]


def test_a_worker_that_dies_while_parked_takes_only_its_skeleton(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=pool(workers=1)))
    assert chat(prism, "a", max_tokens=3).status == 200
    assert prism.command("evict", model="a").ok
    wait_for_state(prism, "a", "parked")
    pid = kill_worker(prism, 0)
    assert wait_for_replacement(prism, 0, pid).model is None
    assert chat(prism, "a", max_tokens=3).status == 200


# --- a request ends its worker: it runs alone, and is refused if it does it again -----------------------------------


def test_a_request_that_ends_its_lone_worker_too_is_refused_by_name(
    serve_prism: ServePrism, in_background: InBackground
) -> None:
    prism = serve_prism(simulated("a", "b", pool=pool(ttft=HELD)))
    answer = in_background(chat, prism, "a")
    for _ in range(2):
        victim = wait_for_running(prism, "a")
        wait_for_replacement(prism, victim, kill_worker(prism, victim))
    assert (answer.result().status, answer.result().error["code"]) == (500, "worker_crash")
    assert "so did one that served nothing else" in answer.result().error["message"]
    nothing_in_flight(prism)


def test_a_poison_ends_two_workers_however_often_it_is_sent(
    serve_prism: ServePrism, in_background: InBackground
) -> None:
    """The engine's process really ends under it, as it does under what an engine does not expect."""
    prism = serve_prism(simulated("a", "b", pool=pool(workers=3, faulty="poison")))
    bystander = stream(prism, "b")
    poisons = [in_background(chat, prism, "a", user="poison") for _ in range(4)]
    assert {poison.result().status for poison in poisons} == {500}
    assert chat(prism, "a", user="poison").error["code"] == "worker_crash"
    assert len([line for line in prism.log if "prism.pool" in line and "is gone:" in line]) == 2
    assert chat(prism, "a", max_tokens=3).status == 200
    assert bystander.next().startswith(b"data: {")
    bystander.disconnect()


def test_who_only_waited_beside_a_poison_is_served_while_it_is_apart(
    serve_prism: ServePrism, in_background: InBackground
) -> None:
    prism = serve_prism(simulated("a", pool=pool(running=1, ttft=0.5)))
    answers = [in_background(chat, prism, "a", max_tokens=2) for _ in range(5)]
    victim = wait_for_running(prism, "a")
    kill_worker(prism, victim)
    assert [answer.result().status for answer in answers] == [200] * 5


# --- worker dies mid-stream: an error event, the stream ends; other workers' streams go on --------------------------


def test_a_worker_that_dies_mid_stream(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", "b", pool=pool()))
    hit, spared = stream(prism, "a"), stream(prism, "b")
    victim = wait_for_running(prism, "a")
    pid = kill_worker(prism, victim)
    assert "the worker died: killed by SIGKILL" in ends_with_error(hit, "aborted")["message"]
    wait_for_replacement(prism, victim, pid)
    assert spared.next().startswith(b"data: {")
    assert chat(prism, "a", max_tokens=3).status == 200
    spared.disconnect()


def test_a_worker_that_dies_while_it_drains(serve_prism: ServePrism, in_background: InBackground) -> None:
    scheduler = {"quantum": 0.0, "drain_after": 0.0}
    prism = serve_prism(simulated("a", "b", pool=pool(workers=1), scheduler=scheduler))
    hit = stream(prism, "a")
    waiting = in_background(chat, prism, "b", max_tokens=3)
    wait_for_state(prism, "a", "draining")
    kill_worker(prism, 0)
    ends_with_error(hit, "aborted")
    assert waiting.result().status == 200


# --- worker alive but silent: as if it had died ---------------------------------------------------------------------


def test_a_stopped_worker_is_killed_and_replaced(serve_prism: ServePrism, in_background: InBackground) -> None:
    silence = {"heartbeat": 0.25, "silence": 2.0}
    prism = serve_prism(simulated("a", "b", pool={**pool(ttft=1.0), **silence}))
    spared = stream(prism, "b")
    answer = in_background(chat, prism, "a", max_tokens=3)
    victim = wait_for_running(prism, "a")
    pid = kill_worker(prism, victim, signal.SIGSTOP)
    prism.wait_for_log(f"worker-{victim} is gone: silent for 2 s")
    wait_for_replacement(prism, victim, pid)
    assert not psutil.pid_exists(pid)
    assert answer.result().status == 200
    assert spared.next().startswith(b"data: {")
    spared.disconnect()


# --- a worker that talks nonsense, or dies again and again ----------------------------------------------------------


def test_garbage_on_a_workers_socket_costs_that_worker_only(serve_prism: ServePrism) -> None:
    """With the template stopped, no worker is there yet to connect: so we are the first."""
    prism = serve_prism(simulated("a", "b", pool=pool()))
    prism.wait_for_workers()
    spared = stream(prism, "b")
    victim = 1 - wait_for_running(prism, "b")
    template = template_of(prism)
    template.suspend()
    kill_worker(prism, victim)
    folder = prism.folder / "admin.sock.d"
    prism.wait_until(lambda _: any(map(Path.is_socket, folder.iterdir())), "the gateway waits for the new worker")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(next(filter(Path.is_socket, folder.iterdir()))))
        connection.sendall(b"\x00\x00\x00\x05GET /")
        template.resume()
        assert connection.recv(1) == b""
    prism.wait_until(lambda status: status.workers[victim].state == "blank", "a real one is up")
    assert prism.worker(victim).restarts == 2
    assert chat(prism, "a", max_tokens=3).status == 200
    assert spared.next().startswith(b"data: {")
    spared.disconnect()


def test_a_worker_that_dies_again_and_again_is_replaced_ever_more_slowly(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=pool()))
    prism.wait_for_workers()
    spared = stream(prism, "a")
    victim = 1 - wait_for_running(prism, "a")
    pid = 0
    for expected in ("starting another", "in 0.5 s", "in 1 s", "in 2 s"):
        wait_for_replacement(prism, victim, pid)
        pid = kill_worker(prism, victim)
        assert prism.wait_for_log(f"worker-{victim} is gone: killed by SIGKILL").endswith(expected)
    assert spared.next().startswith(b"data: {")
    spared.disconnect()


# --- the template and the loader die --------------------------------------------------------------------------------


def test_workers_serve_on_without_the_template_and_the_next_one_has_a_new_template(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=pool(workers=1)))
    spared = stream(prism, "a")
    template = template_of(prism)
    template.kill()
    wait_until_gone([template])
    assert spared.next().startswith(b"data: {")
    pid = kill_worker(prism, 0)
    ends_with_error(spared, "aborted")
    wait_for_replacement(prism, 0, pid)
    assert template_of(prism).pid != template.pid
    assert chat(prism, "a", max_tokens=3).status == 200


def test_a_loader_that_dies_costs_this_load_only(
    serve_prism: ServePrism, in_background: InBackground, held_model: Path
) -> None:
    prism = serve_prism(transformers({"name": "held", "path": str(held_model)}, scheduler={"backoff": 0.1}))
    answer = in_background(chat, prism, "held", max_tokens=3)
    loader_of(prism).kill()
    assert answer.result().status == 503
    assert "killed by SIGKILL" in answer.result().error["message"]
    assert int(answer.result().headers["Retry-After"]) >= 1
    assert "killed by SIGKILL" in prism.wait_for_log("loading held failed: ")

    release(held_model)
    until(lambda: chat(prism, "held", max_tokens=3).status == 200, "it loads after the back-off")


@pytest.fixture
def held_model(demo_folder: Path, tmp_path: Path) -> Path:
    """A model whose weights never come: its file is a pipe that nobody writes to."""
    folder = shutil.copytree(demo_folder / "qwen3-tiny", tmp_path / "held")
    (folder / "model.safetensors").rename(folder / "kept")
    os.mkfifo(folder / "model.safetensors")
    return folder


def release(held_model: Path) -> None:
    (held_model / "kept").replace(held_model / "model.safetensors")


# --- host shared memory is too small --------------------------------------------------------------------------------


def test_more_pinned_models_than_host_memory_are_refused_at_start_with_the_sizes(
    demo_folder: Path,
    tmp_path: Path,
) -> None:
    models = [{"name": name, "path": str(demo_folder / name), "pinned": True} for name in ("llama-tiny", "qwen3-tiny")]
    registry = transformers(*models, weight_store={"host_memory": "30MiB"}, pool={"workers_per_device": 2})
    ended = serve_and_end(tmp_path, registry)
    assert ended.returncode == 2
    assert "llama-tiny 19.3 MiB, qwen3-tiny 15.3 MiB" in ended.stdout
    assert "got 30.0 MiB" in ended.stdout


def test_a_model_that_does_not_fit_into_host_memory_is_refused_with_the_reason(broken_prism: Prism) -> None:
    """Its files would; in the dtype that it is to be served in, it is twice as large."""
    answer = chat(broken_prism, "widened", max_tokens=3)
    assert answer.status == 503
    assert "does not fit into host memory" in answer.error["message"]
    assert "weight_store.host_memory is" in answer.error["message"]
    broken_prism.wait_for_log("refusing requests for widened: ")
    assert int(answer.headers["Retry-After"]) >= 1
    assert chat(broken_prism, "good", max_tokens=3).status == 200


# --- activation fails: 503 with Retry-After, the reason in the log, other models untouched, back-off ----------------


@pytest.mark.parametrize("name", ["truncated", "misshapen"])
def test_a_model_with_broken_files(broken_prism: Prism, name: str) -> None:
    spared = stream(broken_prism, "good", 4000)
    answer = chat(broken_prism, name, max_tokens=3)
    assert answer.status == 503
    assert answer.error["code"] == "model_unavailable"
    assert int(answer.headers["Retry-After"]) >= 1
    reason = broken_prism.model(name).failure
    assert reason
    assert re.sub(r"/\S+/", "", reason) in answer.error["message"]  # clients are told no paths
    broken_prism.wait_for_log(f"loading {name} failed: {reason}")

    loads = sum(f"loading {name} " in line for line in broken_prism.log)
    assert chat(broken_prism, name, max_tokens=3).status == 503  # at once, by the back-off
    assert sum(f"loading {name} " in line for line in broken_prism.log) == loads
    assert spared.next().startswith(b"data: {")
    spared.disconnect()


def test_a_prompt_that_is_too_long_is_refused_and_the_worker_lives(broken_prism: Prism) -> None:
    before = [worker.pid for worker in broken_prism.status().workers]
    answer = chat(broken_prism, "good", messages=[{"role": "user", "content": "word " * 50_000}])
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert chat(broken_prism, "good", max_tokens=3).status == 200
    assert [worker.pid for worker in broken_prism.status().workers] == before


@pytest.fixture(scope="module")
def broken_prism(run_mark: str, demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Serves one good model and three that cannot be."""
    folder = tmp_path_factory.mktemp("models")
    good = shutil.copytree(demo_folder / "qwen3-tiny", folder / "good")
    make_bfloat16(good)
    truncated = shutil.copytree(good, folder / "truncated")
    os.truncate(truncated / "model.safetensors", (good / "model.safetensors").stat().st_size // 2)
    misshapen = shutil.copytree(good, folder / "misshapen")
    set_config(misshapen, intermediate_size=32)
    models = [{"name": path.name, "path": str(path)} for path in (good, truncated, misshapen)]
    wide = shutil.copytree(demo_folder / "llama-tiny", folder / "wide")
    make_bfloat16(wide)
    widened = {"name": "widened", "path": str(wide), "dtype": "float32"}
    scheduler = {"backoff": HELD, "quantum": 0.0, "drain_after": 0.0}
    registry = transformers(
        *models, widened, pool={"workers_per_device": 2}, weight_store={"host_memory": "18MiB"}, scheduler=scheduler
    )
    prism = Prism.start(folder / "gateway", registry)
    prism.wait_for_workers()
    yield prism
    prism.close()


def make_bfloat16(folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    set_config(folder, dtype="bfloat16")


def set_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_another_worker_is_tried_before_a_model_is_refused(
    serve_prism: ServePrism, in_background: InBackground
) -> None:
    prism = serve_prism(simulated("a", "b", pool=pool(activation=HELD), scheduler={"backoff": HELD}))
    answer = in_background(chat, prism, "a")
    first = wait_for_state(prism, "a", "activating")
    prism.wait_until(lambda status: status.workers[1 - first].state == "blank", "the other worker is up")
    kill_worker(prism, first)
    prism.wait_for_log(f"worker-{first} is gone")
    second = wait_for_state(prism, "a", "activating")
    assert second != first
    kill_worker(prism, second)
    assert answer.result().status == 503
    assert f"worker {second} killed by SIGKILL while activating it" in answer.result().error["message"]
    assert int(answer.result().headers["Retry-After"]) >= 1


# --- queue full: 429 with Retry-After -------------------------------------------------------------------------------


def test_a_full_queue(serve_prism: ServePrism) -> None:
    limits = {"queue_per_model": 2}
    prism = serve_prism(simulated("a", "b", pool=pool(running=1), gateway={"limits": limits}))
    running = stream(prism, "a")
    waiting = [Client(prism, "a", max_tokens=1) for _ in range(2)]
    prism.wait_until(lambda status: status.waiting == 2, "two wait")
    answer = chat(prism, "a")
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1
    assert chat(prism, "b", max_tokens=3).status == 200
    for client in (running, *waiting):
        client.disconnect()


# --- a slow reader is dropped, others are not -----------------------------------------------------------------------


def test_a_client_that_does_not_read_is_dropped(serve_prism: ServePrism) -> None:
    limits = {"stream_buffer": "256KiB"}
    prism = serve_prism(simulated("a", pool=pool(tpot=0.002), gateway={"limits": limits}))
    spared = stream(prism, "a")
    gateway = psutil.Process(prism.process.pid)
    before = gateway.memory_info().rss
    with deaf_client(prism, "a") as deaf:
        prism.wait_for_log("its client reads too slowly")
        prism.wait_until(lambda status: status.in_flight == 1, "only the other stream is left")
        assert gateway.memory_info().rss - before < 16 * 2**20
        assert not read_all(deaf).endswith(b"0\r\n\r\n"), "the stream looks as if it were complete"
    assert spared.next().startswith(b"data: {")
    spared.disconnect()
    nothing_in_flight(prism)


def deaf_client(prism: Prism, model: str) -> socket.socket:
    """A connection that has asked for much and has as little room as possible for what it will not read."""
    body = {"model": model, "prompt": ["Once"] * 16, "n": 8, "stream": True, "max_tokens": ENDLESS}
    where = urlsplit(prism.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((where.hostname, where.port))
    content = json.dumps(body).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the connection breaks."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(2**20):
            data += piece
    return data


# --- the gateway is told to stop ------------------------------------------------------------------------------------


def test_requests_in_flight_finish_and_new_ones_are_refused(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", "b", pool=pool(workers=1), gateway={"grace": PATIENCE}))
    client = stream(prism, "a", 300)
    processes = prism.descendants()
    prism.process.send_signal(signal.SIGTERM)
    until(lambda: prism.status().draining != "", "it stops")
    refused = chat(prism, "a", max_tokens=3)
    assert (refused.status, refused.error["code"]) == (503, "draining")
    assert int(refused.headers["Retry-After"]) >= 1
    assert client.rest()[-1]["choices"][0]["finish_reason"] == "length"
    assert prism.process.wait(PATIENCE) == 0
    wait_until_gone(processes)


def test_requests_that_do_not_finish_in_time_end_with_an_error(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", "b", pool=pool(workers=1), gateway={"grace": 0.2}))
    running, waiting = stream(prism, "a"), Client(prism, "b")
    prism.wait_until(lambda status: status.waiting == 1, "one waits")
    prism.process.send_signal(signal.SIGTERM)
    ends_with_error(running, "stopping")
    assert waiting.whole().error["code"] == "stopping"
    assert prism.process.wait(PATIENCE) == 0


def test_a_stop_during_an_activation(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", pool=pool(activation=HELD), gateway={"grace": 0.2}))
    client = Client(prism, "a")
    wait_for_state(prism, "a", "activating")
    processes = prism.descendants()
    assert prism.stop() == 0
    assert client.whole().error["code"] == "stopping"
    wait_until_gone(processes)


def test_a_stop_during_a_load(serve_prism: ServePrism, held_model: Path) -> None:
    prism = serve_prism(transformers({"name": "held", "path": str(held_model)}, gateway={"grace": 0.2}))
    client = Client(prism, "held")
    loader = loader_of(prism)
    assert prism.stop() == 0
    assert client.whole().error["code"] == "stopping"
    wait_until_gone([loader])


@pytest.mark.parametrize("suspended", [False, True], ids=["importing", "suspended"])
def test_a_stop_during_the_start(tmp_path: Path, demo_folder: Path, suspended: bool) -> None:
    registry = transformers({"name": "a", "path": str(demo_folder / "qwen3-tiny")})
    with start(tmp_path, registry) as gateway:
        watched = psutil.Process(gateway.pid)
        until(lambda: any("enginepool.pool.template" in child.cmdline() for child in watched.children()), "it imports")
        (template,) = watched.children()
        if suspended:
            template.suspend()
        gateway.send_signal(signal.SIGTERM)
        output, _ = gateway.communicate(timeout=PATIENCE)
    assert gateway.returncode == 0, output
    assert "listening on" not in output
    wait_until_gone([template])


# --- the gateway is killed: the kernel takes everything with it -----------------------------------------------------


def test_nothing_outlives_a_killed_gateway(serve_prism: ServePrism, demo_folder: Path) -> None:
    name = uuid.uuid4().hex
    registry = transformers({"name": name, "path": str(demo_folder / "qwen3-tiny")})
    prism = serve_prism(registry)
    assert chat(prism, name, max_tokens=3).status == 200
    assert holders_of_segment(name) == {prism.process.pid, prism.pid(0)}
    processes = prism.descendants()
    kill_worker(prism, 0, signal.SIGSTOP)
    prism.kill()
    wait_until_gone(processes)
    assert holders_of_segment(name) == set()
    assert prism.admin_socket.exists()

    again = serve_prism({**registry, "gateway": {"admin_socket": str(prism.admin_socket)}})
    again.admin_socket = prism.admin_socket
    assert chat(again, name, max_tokens=3).status == 200
    again.stop()
    assert not prism.admin_socket.exists()


def holders_of_segment(name: str) -> set[int]:
    """Processes that have a model's weights mapped or open."""
    label = f"memfd:prism-{name}"
    holders = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            links = [os.readlink(fd) for fd in (process / "fd").iterdir()]
            if label in (process / "maps").read_text() or any(label in link for link in links):
                holders.add(int(process.name))
        except OSError:
            continue
    return holders


def test_a_second_gateway_on_the_same_admin_socket_is_refused(serve_prism: ServePrism, tmp_path: Path) -> None:
    prism = serve_prism(simulated("a"))
    ended = serve_and_end(tmp_path, {**simulated("a"), "gateway": {"admin_socket": str(prism.admin_socket)}})
    assert ended.returncode == 1
    assert f"another gateway uses the admin socket {prism.admin_socket}" in ended.stdout
    assert chat(prism, "a", max_tokens=3).status == 200


def test_a_file_in_the_place_of_the_admin_socket_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("not a socket")
    ended = serve_and_end(tmp_path, {**simulated("a"), "gateway": {"admin_socket": str(precious)}})
    assert ended.returncode == 1
    assert str(precious) in ended.stdout
    assert precious.read_text() == "not a socket"


# --- helpers --------------------------------------------------------------------------------------------------------


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def transformers(*models: dict[str, Any], **sections: Any) -> dict[str, object]:
    """A registry of real models, for one worker unless told otherwise."""
    pool = {"engine": "transformers", "workers_per_device": 1, **sections.pop("pool", {})}
    return {"pool": pool, "models": list(models), **sections}


def start(folder: Path, registry: dict[str, Any]) -> subprocess.Popen[str]:
    """`prism serve` that need not come to listen."""
    gateway = {"port": 0, "admin_socket": str(folder / "admin.sock"), **registry.get("gateway", {})}
    file = folder / "registry.yaml"
    file.write_text(yaml.safe_dump({**registry, "gateway": gateway}))
    command = [sys.executable, "-m", "gateway.cli", "serve", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def serve_and_end(folder: Path, registry: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    with start(folder, registry) as gateway:
        output, _ = gateway.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(gateway.args, gateway.returncode, output)


def children_of(prism: Prism) -> list[psutil.Process]:
    """Without what is only there in the course of a fork."""
    return psutil.Process(prism.process.pid).children()


def template_of(prism: Prism) -> psutil.Process:
    """Of the gateway's children it alone leads a session."""
    (template,) = (child for child in children_of(prism) if os.getsid(child.pid) == child.pid)
    return template


def loader_of(prism: Prism) -> psutil.Process:
    """Wait until a load is under way; returns its process."""
    prism.wait_until(lambda status: bool(status.loading), "a load begins")
    workers = {worker.pid for worker in prism.status().workers} | {template_of(prism).pid}

    def others() -> list[psutil.Process]:
        return [child for child in children_of(prism) if child.pid not in workers]

    until(lambda: len(others()) == 1, "the loader is forked")
    return others()[0]
