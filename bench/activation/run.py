"""Runs the measurements of `bench.activation` and the gateways that they need."""

from __future__ import annotations

import argparse
import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.activation.copy_interference import beside_copies
from bench.activation.decode import decode_rates, first_tokens
from bench.activation.idle_cpu import idle_shares
from bench.activation.link import link_rate
from bench.activation.replacement import kill
from bench.activation.report import ActivationFigures
from bench.activation.rounds import ActivationRound, ActivationRounds, Prompts
from bench.activation.stock_server import stock_server
from bench.shapes import config_of
from bench.subjects.checkpoints import tensors_of
from bench.subjects.device_memory import DeviceMemory
from bench.subjects.gateway_under_test import GatewayUnderTest, serving
from bench.subjects.processes import PROJECT
from simulator.errors import StudyError
from simulator.progress import say

START_TIMEOUT = 600.0
"""Seconds for the workers to start; the first time on a machine they compile kernels."""
HOST_SLACK = 1.25
"""Host memory for weights relative to their files, since SGLang's format of them may be larger."""


class ActivationRun:
    """One run of the benchmark; results are collected in `measured`."""

    def __init__(self, chosen: argparse.Namespace, folder: Path, memory: DeviceMemory | None) -> None:
        self._chosen = chosen
        self._folder = folder
        self._memory = memory
        self._prompts = Prompts(None if chosen.engine == "simulated" else folder)
        self.measured = ActivationFigures()

    async def measure(self) -> None:
        """Raises: StudyError."""
        chosen = self._chosen
        if chosen.engine != "simulated":
            await make_models(self._folder, chosen.models, tiny=chosen.tiny, dummy=chosen.dummy)
        self.measured.link = await link_rate(chosen.device)
        say(f"link: {self.measured.link['gbps']:.1f} GB/s, {self.measured.link['what']}")
        if "cold" in chosen.states:
            for model in chosen.cold_models or chosen.models:
                await self._cold(model)
        if {"disk", "blank", "parked"} & {*chosen.states} or chosen.fill_kv or chosen.decode:
            await self._one_at_a_time()
        if "other" in chosen.states or chosen.neighbour or chosen.idle or chosen.kill:
            await self._among_others()

    async def _cold(self, model: str) -> None:
        say(f"cold: starting SGLang's own server for {model}")
        path, given = self._folder / model, shlex.split(self._chosen.cold_args)
        async with stock_server(model, path, self._prompts.write(model), given) as stock:
            took = stock.first_token
            self._take(ActivationRound(model, "cold", _file_bytes(path), {"start": took}, None, took, took))
            if self._chosen.decode and model == self._largest():
                prompts = [self._prompts.write(model) for _ in range(32)]
                self.measured.stock_decode = await decode_rates(stock.client, stock.url, model, prompts)
                self.measured.stock_ttft = await first_tokens(stock.client, stock.url, model, self._prompts.write)

    async def _one_at_a_time(self) -> None:
        """Measure the states in which no other model is active. All workers but one are reserve, so that parked models
        are soon torn down."""
        chosen = self._chosen
        reserve = chosen.workers - 1
        before = self._memory.used if self._memory is not None else 0
        async with serving(self._registry(reserve), START_TIMEOUT) as subject:
            rounds = ActivationRounds(subject, chosen.models, reserve, self._prompts, self._memory)
            all_blank = self._memory.used if self._memory is not None else 0
            self.measured.blank_bytes = int((all_blank - before) / chosen.workers) if self._memory is not None else None
            for model in chosen.models:
                taken = await rounds.disk(model)
                if "disk" in chosen.states:
                    self._take(taken)
            for model in chosen.models:
                for state, way in (("parked", rounds.parked), ("blank", rounds.blank)):
                    for _ in range(chosen.rounds if state in chosen.states else 0):
                        self._take(await way(model))
                if self._memory is not None:
                    of_blank = (all_blank - before) / chosen.workers
                    self.measured.parked_bytes[model] = await rounds.parked_bytes(model, all_blank, of_blank)
            await self._extras(subject, rounds)
            await subject.check_workers()

    async def _extras(self, subject: GatewayUnderTest, rounds: ActivationRounds) -> None:
        """Measurements of the largest model only."""
        model = self._largest()
        if self._chosen.fill_kv:
            say(f"evicting {model} with its KV cache full")
            self.measured.full_eviction, self.measured.full_bytes = await rounds.evict_full(model, self._chosen.fill_kv)
        if self._chosen.decode:
            say(f"decoding with {model}")
            prompts = [self._prompts.write(model) for _ in range(32)]
            self.measured.decode = await decode_rates(subject.client, subject.url, model, prompts)
            self.measured.ttft = await first_tokens(subject.client, subject.url, model, self._prompts.write)

    async def _among_others(self) -> None:
        chosen = self._chosen
        async with serving(self._registry(chosen.reserve), START_TIMEOUT) as subject:
            rounds = ActivationRounds(subject, chosen.models, chosen.reserve, self._prompts, self._memory)
            for model in chosen.models:
                say(f"bringing {model} into host memory")
                await rounds.disk(model)
            for model in chosen.models if "other" in chosen.states else ():
                for _ in range(chosen.rounds):
                    self._take(await rounds.other(model))
            await self._beside(subject, rounds)
            await subject.check_workers()
            if chosen.kill:
                await self._kill(subject)

    async def _beside(self, subject: GatewayUnderTest, rounds: ActivationRounds) -> None:
        """Measure how activations of the largest model affect the smallest, and their CPU use when idle."""
        chosen, copied = self._chosen, self._largest()
        neighbour = min((it for it in chosen.models if it != copied), key=self._weight_bytes, default=copied)
        if chosen.neighbour:
            say(f"copying {copied} beside {neighbour}")
            await rounds.active_and_parked(neighbour, copied)
            found = await beside_copies(subject, self._prompts, copied, neighbour, chosen.rounds)
            self.measured.neighbour = found
        if chosen.idle:
            say("doing nothing")
            await rounds.active_and_parked(neighbour, copied)
            self.measured.idle = await idle_shares(subject)

    async def _kill(self, subject: GatewayUnderTest) -> None:
        model = self._largest()
        for _ in range(self._chosen.rounds):
            found = await kill(subject, self._memory, model)
            say(f"{model}'s worker killed: another is blank after {1000 * found.blank:.0f} ms")
            self.measured.replacements.append(found)

    def _take(self, taken: ActivationRound) -> None:
        self.measured.rounds.append(taken)
        evicted = "" if taken.evict is None else f", evicted in {1000 * taken.evict:.0f} ms"
        say(f"{taken.model:>14} {taken.state:>7}: first token after {1000 * taken.first_token:.0f} ms{evicted}")

    def _largest(self) -> str:
        chosen: list[str] = self._chosen.models
        return max(chosen, key=self._weight_bytes)

    def _weight_bytes(self, model: str) -> int:
        if self._chosen.dummy:
            return sum(tensor.nbytes for tensor in tensors_of(config_of(model, tiny=self._chosen.tiny)))
        return _file_bytes(self._folder / model)

    def _registry(self, reserve: int) -> dict[str, Any]:
        chosen = self._chosen
        nbytes = sum(map(self._weight_bytes, chosen.models))
        made: dict[str, Any] = {
            "pool": {
                "engine": chosen.engine,
                "devices": [chosen.device],
                "workers_per_device": chosen.workers,
                "blank_reserve": reserve,
            },
            "weight_store": {"host_memory": int(HOST_SLACK * nbytes) + 2**30},
            "scheduler": {"policy": "lru", "idle_timeout": "24h", "linger": 0},
            "models": registry_models(chosen.engine, self._folder, chosen.models, dummy=chosen.dummy),
        }
        for key, value in chosen.set:
            *path, last = key.split(".")
            section = made
            for part in path:
                section = section.setdefault(part, {})
            section[last] = value
        return made


def registry_models(engine: str, folder: Path, names: Sequence[str], *, dummy: bool) -> list[dict[str, str]]:
    """Registry entries for the models that `make_models` creates in `folder`."""
    if engine == "simulated":
        return [{"name": name} for name in names]
    weights = "dummy" if dummy else "checkpoint"
    return [{"name": name, "path": str(folder / name), "weights": weights} for name in names]


async def make_models(folder: Path, wanted: list[str], *, tiny: bool, dummy: bool) -> None:
    """Create models in a process of its own, so that no CUDA context remains. Raises: StudyError."""
    options = [*(["--tiny"] if tiny else []), *(["--no-weights"] if dummy else [])]
    command = [sys.executable, "-m", "bench.shapes", "--out", folder, *wanted, *options]
    process = await asyncio.create_subprocess_exec(*map(str, command), cwd=PROJECT)
    if await process.wait():
        raise StudyError("the models could not be created")


def _file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
