"""What an engine answers whose KV cache behaves as on a crowded GPU, on a CPU.

`scarce FOLDER` prints a `Report` for each scenario as JSON. It changes SGLang's allocator: that one keeps
to a limit, misses as kvcached's does, and while more is held than the limit, what is evicted is gone and not free.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import psutil
import uvloop
from msgspec import structs

from enginepool.engine import Output
from enginepool.engines.sglang import SglangEngine
from enginepool.engines.sglang.protocol import KvLimitSet, StartRank
from enginepool.engines.sglang.rank import stalled_queue
from enginepool.engines.sglang.rank.cpu import CpuDevice, FixedKv
from enginepool.messages import Done, KvLimitApplied, Manifest, ModelSpec, Reply, SegmentRef, Submit

MAX_RUNNING = 4
POOL = 2**26
"""Bytes of the pool, far more than anything here fills."""
SMALL = 100
"""Tokens of a limit."""
PROMPTS = ("Once upon a time", "A gate opens", "The sky is blue", "Two birds", "She said")
LONG = "word " * 300
PATIENCE = 60.0
"""Seconds after which a scenario fails."""
WINDOW = 1.0
"""Seconds over which CPU time is measured."""

Result = TypeVar("Result")


@dataclass
class Report:
    statuses: list[int] = field(default_factory=list)
    """In the order in which answers came; 0 for a stream that ended well and 1 for one that did not."""
    texts: list[str] = field(default_factory=list)
    """In the order of the requests."""
    waited: bool = False
    """Whether requests were unanswered until the limit was raised."""
    same_rank: bool = False
    cpu_share: float = 0.0
    """Of the rank, while its requests waited."""


class Gateway:
    """Plays the gateway to an engine in this process."""

    def __init__(self) -> None:
        self.answers: dict[int, Output] = {}
        self.revision = 0
        self._serials = itertools.count(1)
        self._changed = asyncio.Event()

    def emit(self, output: Output) -> None:
        if isinstance(output, (Reply, Done)):
            self.answers[output.request] = output
        elif isinstance(output, KvLimitApplied):
            self.revision = output.revision
        self._changed.set()

    def ask(self, engine: SglangEngine, prompt: str, **fields: Any) -> int:
        request = next(self._serials)
        body = {"model": "m", "prompt": prompt, "temperature": 0, "ignore_eos": True, "max_tokens": 24, **fields}
        engine.submit(Submit(request, "/v1/completions", json.dumps(body).encode(), float(request)))
        return request

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def all(self, requests: list[int]) -> None:
        await self.until(lambda: all(it in self.answers for it in requests))

    def report(self, requests: list[int]) -> Report:
        return Report(
            statuses=[_status(self.answers[it]) for it in self.answers if it in requests],
            texts=[_text(self.answers[it]) for it in requests],
        )


def _status(answer: Output) -> int:
    return answer.status if isinstance(answer, Reply) else int(isinstance(answer, Done) and bool(answer.error))


def _text(answer: Output) -> str:
    if isinstance(answer, Done):
        return answer.error
    assert isinstance(answer, Reply)
    body = json.loads(answer.body)
    text: str = body["choices"][0]["text"] if answer.status == 200 else body.get("error", body)["message"]
    return text


def make_scarce() -> None:
    """Change SGLang's allocator. A byte of KV cache is one token from now on."""
    import torch
    from sglang.srt.managers.scheduler_components.invariant_checker import SchedulerInvariantChecker
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    from sglang.srt.mem_cache.base_prefix_cache import EvictParams

    allocator: Any = TokenToKVPoolAllocator
    free, alloc, calls = allocator.available_size, allocator.alloc, itertools.count(1)

    def available_size(self: Any) -> int:
        return int(max(0, min(free(self), settings.limit - used(self))))

    def used(self: Any) -> int:
        return int(self.size - free(self))

    def alloc_or_miss(self: Any, need_size: int) -> Any:
        missed = settings.miss_every and next(calls) % settings.miss_every == 0
        if missed or need_size > available_size(self):
            torch.tensor(None, dtype=torch.int64)  # type: ignore[call-overload]  # kvcached's way to say so
        return alloc(self, need_size)

    def set_limit(kv: Any, revision: int, nbytes: int) -> KvLimitSet:
        settings.limit = nbytes
        over = used(kv.scheduler.token_to_kv_pool_allocator) - nbytes
        if over > 0:
            kv.scheduler.tree_cache.evict(EvictParams(num_tokens=over))
        return KvLimitSet(revision, 0, applied=True)

    def init(kv: Any, scheduler: Any) -> None:
        kv.scheduler, kv.mapped, kv.bytes_per_token = scheduler, 0, 1.0
        kv._tokens, kv._allocator = scheduler.max_total_num_tokens, scheduler.token_to_kv_pool_allocator

    fixed: Any = FixedKv
    fixed.__init__, fixed.set_limit = init, set_limit
    allocator.available_size, allocator.alloc = available_size, alloc_or_miss
    # A limit looks like a leak, so kvcached does this too.
    SchedulerInvariantChecker._report_leak = lambda *args, **kwargs: None


@dataclass
class Settings:
    """Of a rank that is forked later."""

    limit: int = 2**30
    """Tokens."""
    miss_every: int = 0
    """Of that many allocations the last misses; 0 for none."""
    chunk: int = 4096
    """Tokens of a prompt that are prefilled in one step."""


settings = Settings()


@dataclass
class Crowded:
    """An engine with a model, and what a scenario may do to it."""

    engine: SglangEngine
    gateway: Gateway

    async def answers(self, requests: list[int]) -> Report:
        await self.gateway.all(requests)
        return self.gateway.report(requests)

    def ask(self, prompt: str, **fields: Any) -> int:
        return self.gateway.ask(self.engine, prompt, **fields)

    async def limit(self, revision: int, tokens: int) -> None:
        self.engine.set_kv_limit(revision, tokens)
        await self.gateway.until(lambda: self.gateway.revision == revision)

    async def cpu_share(self) -> float:
        """Of one core, in the rank, over a second."""
        rank = psutil.Process(self.engine._rank.pid)
        before = sum(rank.cpu_times()[:2])
        await asyncio.sleep(WINDOW)
        return (sum(rank.cpu_times()[:2]) - before) / WINDOW


async def all_at_once(crowded: Crowded) -> Report:
    return await crowded.answers([crowded.ask(it) for it in (*PROMPTS, LONG)])


async def limit_below_a_prompt(crowded: Crowded) -> Report:
    """A long prompt and those behind it, under a limit that only they would fit into, until it is raised."""
    await crowded.limit(1, SMALL)
    requests = [crowded.ask(it) for it in (LONG, *PROMPTS)]
    share = await crowded.cpu_share()
    waited = requests[0] not in crowded.gateway.answers
    await crowded.limit(2, 2**30)
    report = await crowded.answers([*requests[1:], requests[0]])
    return replace(report, waited=waited, cpu_share=share)


async def limit_below_an_answer(crowded: Crowded) -> Report:
    """Two answers that outgrow the limit together, and each alone."""
    await crowded.limit(1, SMALL)
    requests = [crowded.ask(it, max_tokens=2 * SMALL) for it in PROMPTS[:2]]
    share = await crowded.cpu_share()
    waited = not any(it in crowded.gateway.answers for it in requests)
    await crowded.limit(2, 2**30)
    return replace(await crowded.answers(requests), waited=waited, cpu_share=share)


async def long_answers(crowded: Crowded) -> Report:
    return await crowded.answers([crowded.ask(it, max_tokens=2 * SMALL) for it in PROMPTS[:2]])


async def limit_stays(crowded: Crowded) -> Report:
    """Nobody raises the limit: the long prompts are given up, the short one behind them is served."""
    await crowded.limit(1, SMALL)
    return await crowded.answers([crowded.ask(LONG), crowded.ask(LONG, stream=True), crowded.ask(PROMPTS[0])])


SCENARIOS: dict[str, tuple[Callable[[Crowded], Awaitable[Report]], Settings]] = {
    "undisturbed": (all_at_once, Settings()),
    "misses": (all_at_once, Settings(miss_every=3)),
    "misses between the pieces of a prompt": (all_at_once, Settings(miss_every=2, chunk=64)),
    "limit below a prompt": (limit_below_a_prompt, Settings()),
    "long answers": (long_answers, Settings()),
    "limit below an answer": (limit_below_an_answer, Settings()),
    "limit stays": (limit_stays, Settings()),
    "no device is large enough": (all_at_once, Settings()),
}


def play(name: str, model: ModelSpec, manifest: Manifest, segment: SegmentRef) -> Report:
    global settings
    scenario, settings = SCENARIOS[name]
    model = structs.replace(model, engine_args={"chunked_prefill_size": settings.chunk})
    if name == "limit stays":
        stalled_queue.PATIENCE = 0.1
    if name == "no device is large enough":
        CpuDevice.memory = manifest.nbytes + SMALL

    async def run() -> Report:
        gateway = Gateway()
        engine = SglangEngine(gateway.emit, StartRank("cpu", 1, MAX_RUNNING, POOL))
        await engine.start()
        rank = engine._rank.pid
        await engine.activate(model, manifest, segment, verify=False)
        report = await scenario(Crowded(engine, gateway))
        await engine.park()  # which it can only when idle, with nothing left
        report.same_rank = engine._rank.pid == rank and not engine._rank.died.done()
        await engine.close()
        return report

    return uvloop.run(run())


def in_child(play: Callable[..., Result], *args: Any) -> Result:
    """A rank can only be forked from a process that has no thread yet."""
    receive, send = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        try:
            send.send(play(*args))
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    send.close()
    try:
        result: Result = receive.recv()
        return result
    finally:
        os.waitpid(pid, 0)


def main(folder: str) -> None:
    make_scarce()
    from enginepool.engines.sglang.loading import weights

    model = ModelSpec("m", folder, "float32", {})
    manifest, held = weights.load(model, lambda done, total: None, max_running=MAX_RUNNING, device="cpu")
    with held:
        reports = {name: asdict(in_child(play, name, model, manifest, held.ref)) for name in SCENARIOS}
    print(json.dumps(reports))
