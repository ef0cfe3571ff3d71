"""The soak test of `bench.swaps`: load, random operator commands, monitoring of states, and memory at rest before and
after."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from bench.load.client import chat_body, list_models
from bench.load.operating import PATIENCE, pid_of
from bench.load.outcomes import RequestOutcome
from bench.load.plan import make_plan
from bench.load.prompts import PromptWriter
from bench.load.replay import Replay
from bench.load.summary import summarize
from bench.machine import describe_machine, versions
from bench.subjects.device_memory import DeviceMemory
from bench.subjects.gateway_under_test import GatewayUnderTest, serving
from gateway.report import ModelState, WorkerStatus
from scheduler.state.phases import Phase
from simulator.errors import StudyError
from simulator.percentiles import spread
from simulator.progress import say

START_TIMEOUT = 600.0
WATCH_EVERY = 0.02
"""Seconds between reads of all models' states."""
AT_ONCE = 8
"""Concurrent chats with which each model is warmed up on each worker."""
KIB = 2**10
MIB = 2**20
WORKER_FACTS = ("worker", "pid", "state", "model", "restarts", "held_bytes", "gpu_bytes")

Phases = Mapping[str, float]
"""Seconds by phase."""
Sight = tuple[float, dict[str, str]]
"""Time on the performance counter, and the state from which each model would have been activated then."""


class Soak:
    def __init__(self, chosen: argparse.Namespace, registry: Mapping[str, Any], memory: DeviceMemory | None) -> None:
        self._chosen = chosen
        self._registry = registry
        self._memory = memory
        self._names: list[str] = [model["name"] for model in registry["models"]]
        self._refused: Counter[str] = Counter()

    async def run(self) -> dict[str, Any]:
        """All figures. Raises: StudyError."""
        async with serving(self._registry, START_TIMEOUT, self._chosen.record) as subject:
            for name in self._names:
                say(f"first activation of {name}")
                await subject.ask(name, "Are you there?", 8)
            say("every model once on every worker: what a process needs for the first time stays with it")
            await self._everywhere(subject)
            before = await self._at_rest(subject)
            say("the load begins")
            figures = await self._under_load(subject)
            after = await self._at_rest(subject)
        return {**figures, **self._memory_figures(before, after), "machine": describe_machine(), "versions": versions()}

    # load

    async def _under_load(self, subject: GatewayUnderTest) -> dict[str, Any]:
        listed = await list_models(subject.client, subject.url)
        plan = make_plan(self._chosen, self._names)
        writer = PromptWriter(self._chosen.seed)
        bodies = [chat_body(it.model, writer.write(it.prompt_tokens), it.output_tokens) for it in plan]
        replay = Replay(subject.client, subject.url, plan, bodies, PATIENCE)
        sights: list[Sight] = []
        teardowns: list[Phases] = []
        counted = await _counters(subject)
        helpers = [
            asyncio.create_task(_watch(subject, sights, teardowns)),
            asyncio.create_task(self._swap_at_random(subject)),
        ]
        try:
            took = await replay.run()
            for helper in helpers:
                if helper.done():
                    helper.result()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
        now = await _counters(subject)
        return {
            "load": summarize(replay.outcomes, listed, took),
            "swaps": int(now["prism_activation_seconds_count"] - counted["prism_activation_seconds_count"]),
            "evictions": int(now["prism_evictions_total"] - counted["prism_evictions_total"]),
            "worker_deaths": int(now["prism_worker_deaths_total"] - counted["prism_worker_deaths_total"]),
            "teardowns": teardown_figures(teardowns),
            "waited": waited(replay.outcomes, replay.began, sights),
            "commands_refused": dict(self._refused),
        }

    async def _swap_at_random(self, subject: GatewayUnderTest) -> None:
        """Act as an operator who evicts active models and activates others, at regular intervals over the run."""
        picking = random.Random(self._chosen.seed)
        for _ in range(self._chosen.random_swaps):
            await asyncio.sleep(self._chosen.duration / self._chosen.random_swaps)
            name = picking.choice(self._names)
            state = (await subject.models())[name].state
            try:
                await subject.command("evict" if state is ModelState.ACTIVE else "activate", model=name)
            except StudyError as error:  # the model's state has changed in the meantime
                self._refused[str(error).splitlines()[0]] += 1

    # rest

    async def _everywhere(self, subject: GatewayUnderTest) -> None:
        writer = PromptWriter(self._chosen.seed + 1)
        for name in self._names:
            for worker in await subject.workers():
                await subject.command("activate", model=name, worker=worker.worker)
            at_once = AT_ONCE * len(await subject.workers())
            await asyncio.gather(*(subject.ask(name, writer.write(16 * 2 ** (n % 6)), 16) for n in range(at_once)))

    async def _at_rest(self, subject: GatewayUnderTest) -> dict[str, Any]:
        """Park the smallest model on every worker, so that both measurements see the same skeletons; then measure."""
        smallest = await self._smallest(subject)
        for worker in await subject.workers():
            await subject.settled()
            for name in self._names:
                await subject.evict(name)
            await subject.command("activate", model=smallest, worker=worker.worker)
        await subject.settled()
        await subject.evict(smallest)
        workers = await subject.settled()
        host = host_bytes(subject.pid, workers)
        return {
            "device": self._memory.used if self._memory is not None else None,
            "device_by_process": self._memory.by_process() if self._memory is not None else {},
            "host": sum(host.values()),
            "host_by_process": host,
            "workers": [{key: getattr(worker, key) for key in WORKER_FACTS} for worker in workers],
        }

    async def _smallest(self, subject: GatewayUnderTest) -> str:
        models = await subject.models()
        return min(models, key=lambda name: models[name].weight_bytes)

    def _memory_figures(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        lost = (after["device"] - before["device"]) / MIB if before["device"] is not None else None
        return {
            "at_rest_before": before,
            "at_rest_after": after,
            "device_lost_mib": lost,
            "host_grown_percent": 100 * (after["host"] - before["host"]) / before["host"],
        }


async def _watch(subject: GatewayUnderTest, sights: list[Sight], teardowns: list[Phases]) -> None:
    last = {worker.worker: worker.teardown_phases_s for worker in await subject.workers()}
    while True:
        at, workers = time.perf_counter(), await subject.workers()
        states = {name: model.state for name, model in (await subject.models()).items()}
        sights.append((at, sources(states, blank=sum(worker.state is Phase.BLANK for worker in workers))))
        now = {worker.worker: worker.teardown_phases_s for worker in workers}
        teardowns += [phases for number, phases in now.items() if phases and phases != last[number]]
        last = now
        await asyncio.sleep(WATCH_EVERY)


def teardown_figures(teardowns: Sequence[Phases]) -> dict[str, Any]:
    """Seconds, whole and by phase."""
    wholes = [sum(phases.values()) for phases in teardowns]
    names = dict.fromkeys(name for phases in teardowns for name in phases)
    return {
        "count": len(wholes),
        "seconds": spread(wholes),
        "phases": {name: spread([phases.get(name, 0.0) for phases in teardowns]) for name in names},
    }


def sources(states: Mapping[str, ModelState], blank: int) -> dict[str, str]:
    """The state of each model: active, parked, disk, other or blank, or a temporary one such as activating.

    `other` means that at most one worker is blank: the reserve, or the last one.
    """
    elsewhere = {
        ModelState.ON_DISK: "disk",
        ModelState.LOADING: "disk",
        ModelState.IN_HOST_MEMORY: "blank" if blank > 1 else "other",
    }
    return {name: elsewhere.get(state, state.value) for name, state in states.items()}


def waited(outcomes: Sequence[RequestOutcome], began: float, sights: Sequence[Sight]) -> dict[str, dict[str, Any]]:
    """TTFT in seconds of requests whose model was not active when they were sent, by model and state."""
    seconds: dict[str, dict[str, list[float]]] = {}
    for outcome in outcomes:
        seen = bisect_right(sights, began + outcome.sent, key=lambda sight: sight[0])
        state = sights[seen - 1][1][outcome.arrival.model] if seen else "active"
        if state == "active" or outcome.ttft is None:
            continue
        for model in (outcome.arrival.model, "all"):
            seconds.setdefault(model, {}).setdefault(state, []).append(outcome.ttft)
    return {
        model: {state: {"requests": len(times), **spread(times)} for state, times in by_state.items()}
        for model, by_state in seconds.items()
    }


async def _counters(subject: GatewayUnderTest) -> Counter[str]:
    """The gateway's metrics, each summed over its labels."""
    async with subject.client.get(f"{subject.url}/metrics") as response:
        text = await response.text()
    sums: Counter[str] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            sums[sample.name] += sample.value  # type: ignore[assignment]
    return sums


def host_bytes(gateway: int, workers: Sequence[WorkerStatus]) -> dict[str, int]:
    """Bytes of the gateway and its children by role, without weights and other shared memory."""
    fronts = {pid_of(worker): worker.worker for worker in workers}
    found: Counter[str] = Counter()
    for process in [psutil.Process(gateway), *psutil.Process(gateway).children(recursive=True)]:
        found[_role(process, gateway, fronts)] += _own_bytes(process)
    return dict(found)


def _role(process: psutil.Process, gateway: int, fronts: Mapping[int, int]) -> str:
    if process.pid == gateway:
        return "gateway"
    if process.pid in fronts:
        return f"worker {fronts[process.pid]}"
    try:
        parent = process.ppid()
    except psutil.NoSuchProcess:
        parent = 0
    return f"rank of worker {fronts[parent]}" if parent in fronts else "template"


def _own_bytes(process: psutil.Process) -> int:
    """The process's anonymous memory, counting its share of pages shared since a fork."""
    try:
        rollup = Path("/proc", str(process.pid), "smaps_rollup").read_text()
    except OSError:  # the process has ended
        return 0
    values = dict(line.split(":", 1) for line in rollup.splitlines() if line.startswith("Pss_Anon:"))
    return KIB * int(values.get("Pss_Anon", "0 kB").split()[0])
