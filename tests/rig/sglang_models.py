"""What the tests of the sglang engine share: models on disk and in host memory, and a worker to play the gateway to."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import json
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from config.registry import PoolConfig
from enginepool import process
from enginepool.messages import (
    Abort,
    Activate,
    Blank,
    Chunk,
    Counted,
    Done,
    FromWorker,
    Head,
    ModelSpec,
    Park,
    Reply,
    Submit,
    WorkerActivated,
    WorkerBlanked,
    WorkerFailed,
    WorkerParked,
    WorkerReady,
)
from enginepool.pool.forks import Child, ForkServer
from enginepool.pool.store import WeightStore
from gateway.demo_models import NAMES
from tests.rig.models import Stored, ignore_progress
from tests.rig.serving import PATIENCE

NEEDS_SGLANG = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="SGLang is not installed: requirements/sglang-cpu.txt has it"
)


COMPLETIONS = "/v1/completions"
PROMPT = "Once upon a time"
LENGTH = 12
"""Tokens of a short answer."""
MAX_RUNNING = 2


class Worker:
    """Plays the gateway: owns a worker process and keeps what it says."""

    def __init__(self, child: Child[FromWorker]) -> None:
        self.child = child
        self.log: list[FromWorker] = []
        self._serials = itertools.count(1)
        self._changed = asyncio.Event()
        child.receive(self._on_message)

    @property
    def front(self) -> psutil.Process:
        return psutil.Process(self.child.pid)

    @property
    def rank(self) -> psutil.Process:
        rank, *_ = self.front.children()  # then processes that try grammars out
        return rank

    # its model

    async def activate(self, model: Stored, verify: bool = False) -> dict[str, float]:
        self.child.channel.send(Activate(model.spec, model.manifest, model.segment.ref, verify))
        answer = await self.next(WorkerActivated, WorkerFailed)
        assert isinstance(answer, WorkerActivated), answer
        return answer.phases

    async def fail_to_activate(self, model: Stored, verify: bool = False) -> str:
        self.child.channel.send(Activate(model.spec, model.manifest, model.segment.ref, verify))
        answer = await self.next(WorkerActivated, WorkerFailed)
        assert isinstance(answer, WorkerFailed), answer
        return answer.reason

    async def park(self) -> None:
        self.child.channel.send(Park())
        await self.next(WorkerParked)

    async def blank(self) -> None:
        self.child.channel.send(Blank())
        await self.next(WorkerBlanked)

    # its requests

    def submit(self, path: str = COMPLETIONS, deadline: float = 1.0, **fields: Any) -> int:
        request = next(self._serials)
        body = {"model": "m", "temperature": 0, "max_tokens": LENGTH}
        body |= {"prompt": PROMPT} if path == COMPLETIONS else {}
        self.child.channel.send(Submit(request, path, json.dumps(body | fields).encode(), deadline))
        return request

    def abort(self, request: int) -> None:
        self.child.channel.send(Abort(request))

    async def ask(self, path: str = COMPLETIONS, **fields: Any) -> Reply:
        request = self.submit(path, **fields)
        await self.until(lambda: self.ended(request))
        (reply,) = (it for it in self.outputs(request) if not isinstance(it, Counted))
        assert isinstance(reply, Reply)
        return reply

    async def complete(self, **fields: Any) -> str:
        reply = await self.ask(**fields)
        assert reply.status == 200, reply
        text: str = json.loads(reply.body)["choices"][0]["text"]
        return text

    def outputs(self, request: int) -> list[FromWorker]:
        return [it for it in self.log if isinstance(it, (Counted, Reply, Head, Chunk, Done)) and it.request == request]

    def ended(self, request: int) -> bool:
        return any(isinstance(it, (Reply, Done)) for it in self.outputs(request))

    def began(self, request: int) -> bool:
        return any(isinstance(it, Chunk) for it in self.outputs(request))

    # waiting

    async def next(self, *kinds: type[FromWorker]) -> FromWorker:
        """The next message of one of these kinds that comes from now on."""
        known = len(self.log)
        await self.until(lambda: any(isinstance(it, kinds) for it in self.log[known:]))
        return next(it for it in self.log[known:] if isinstance(it, kinds))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                assert not self.child.exited.done(), self.child.exited.result()
                self._changed.clear()
                await self._changed.wait()

    def _on_message(self, message: FromWorker) -> None:
        self.log.append(message)
        self._changed.set()


@pytest.fixture(scope="session")
def sglang_models(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo's models. SGLang takes it that Gemma's output layer is its embedding, as in all that Google released."""
    from safetensors.torch import load_file, save_file

    tied = shutil.copytree(demo_folder / "gemma3-tiny", tmp_path_factory.mktemp("tied") / "gemma3-tiny")
    config = json.loads((tied / "config.json").read_text())
    (tied / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    weights = load_file(tied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, tied / "model.safetensors", metadata={"format": "pt"})
    return {name: tied if name == "gemma3-tiny" else demo_folder / name for name in NAMES}


@pytest.fixture(scope="session")
def sglang_run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@contextmanager
def adopting() -> Iterator[None]:
    """What a template forks becomes this process's child, as it becomes the gateway's."""
    process.set_subreaper(True)
    yield
    process.set_subreaper(False)


@asynccontextmanager
async def template(run_dir: Path) -> AsyncIterator[ForkServer]:
    forks = ForkServer(PoolConfig(engine="sglang", max_running=MAX_RUNNING, kv_memory=2**26), run_dir)
    await forks.start()
    yield forks
    await forks.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sglang_template(run_mark: str, sglang_run_dir: Path) -> AsyncIterator[ForkServer]:
    """One for all modules: its imports take seconds."""
    async with template(sglang_run_dir) as forks:
        yield forks


@pytest.fixture(scope="module")
def sglang_forks(sglang_template: ForkServer) -> Iterator[ForkServer]:
    with adopting():
        yield sglang_template


@pytest_asyncio.fixture(loop_scope="session")
async def sglang_worker(sglang_forks: ForkServer) -> AsyncIterator[Worker]:
    """A blank worker; its rank goes with it."""
    async with _worker(sglang_forks) as worker:
        yield worker


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def sglang_module_worker(sglang_forks: ForkServer) -> AsyncIterator[Worker]:
    """One for all tests of a module."""
    async with _worker(sglang_forks) as worker:
        yield worker


@asynccontextmanager
async def _worker(sglang_forks: ForkServer) -> AsyncIterator[Worker]:
    child: Child[FromWorker] = await sglang_forks.fork("worker", "worker", "cpu", FromWorker)
    worker = Worker(child)
    await worker.until(lambda: any(isinstance(it, WorkerReady) for it in worker.log))
    yield worker
    ranks = psutil.Process(child.pid).children() if not child.exited.done() else []
    await child.kill()
    psutil.wait_procs(ranks, timeout=PATIENCE)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def sglang_stored(
    sglang_template: ForkServer, sglang_models: dict[str, Path]
) -> AsyncIterator[dict[str, Stored]]:
    """The same in host memory, by a loader that a template forked."""
    store = WeightStore(sglang_template)
    found = {}
    for name, folder in sglang_models.items():
        spec = ModelSpec(name, str(folder), "float32", {})
        with adopting():
            await store.load(spec, ignore_progress)
        stored = store.get(name)
        assert stored is not None
        found[name] = Stored(spec, stored.manifest, stored.segment)
    yield found
    store.close()


@pytest.fixture(scope="session")
def sglang_answers(sglang_models: dict[str, Path]) -> dict[str, str]:
    """What transformers itself answers to PROMPT, greedily."""
    return {name: generate(folder) for name, folder in sglang_models.items()}


def generate(folder: Path) -> str:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=LENGTH, do_sample=False)[0]
    text: str = tokenizer.decode(tokens[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    return text
