"""Executes all runs of a comparison, in an order that starts as few gateways as possible."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

from bench.evaluation.real import traces
from bench.evaluation.real.judging import by_model, measured, shares
from bench.evaluation.real.report import write_page
from bench.evaluation.real.results import MEASURED, PREDICTED, Key, Results
from bench.evaluation.real.scenarios import MEMORY, as_registry, number_of_gpus, own_registry, read_content, variant
from bench.evaluation.real.session import MeasuredRun, Session, session
from bench.evaluation.real.simulating import simulate
from bench.load.outcomes import ClientSlo
from bench.load.report import entry_of
from bench.load.warm_up import POLICY
from bench.machine import describe_machine, versions
from config.registry import Registry
from simulator.calibration import read_calibration
from simulator.errors import StudyError
from simulator.progress import say
from simulator.traces.trace import Trace

RATE = 3.0
"""Requests per second and GPU, for generated traces."""
OVERHEAD = 20.0
"""Estimated seconds by which a run outlasts its trace, until one has been measured."""
GIB = 2**30


@dataclass(frozen=True)
class GatewaySetup:
    """Settings that require a gateway of their own."""

    mps: bool
    memory: int | None


class PolicyComparison:
    def __init__(self, chosen: argparse.Namespace, command: list[str], folder: Path) -> None:
        """Prepare the comparison; models are created in `folder`. Raises: StudyError, ConfigError."""
        self._chosen = chosen
        self._ends = None if chosen.budget is None else time.monotonic() + chosen.budget
        self._overhead = 0.0
        self._startup = 0.0
        if chosen.registry is not None:
            self._content = read_content(chosen.registry)
        else:
            gpus = 1 if chosen.tiny else chosen.gpus or number_of_gpus()
            self._content = own_registry(folder, gpus, tiny=chosen.tiny)
        registry = as_registry(self._content)
        self._models = [model.name for model in registry.models]
        self._gpus = len(registry.pool.devices)
        self._calibration = read_calibration(chosen.calibration)
        self._memories = chosen.memory or [self._default_memory(registry)]
        self._traces = {traces.name_of(text, chosen.time_scale): self._open(text) for text in chosen.traces}
        name = PREDICTED if chosen.simulate_only else MEASURED
        self.results = Results(chosen.out, name, self._about(registry, command), resume=chosen.resume)
        if chosen.details is not None:
            chosen.details.mkdir(parents=True, exist_ok=True)

    def _default_memory(self, registry: Registry) -> int | None:
        own = self._chosen.registry is None and not self._chosen.tiny
        return MEMORY if own else registry.pool.device_memory

    def _open(self, text: str) -> Trace:
        chosen = self._chosen
        wanted = traces.TraceSettings(
            self._models,
            chosen.rate or RATE * self._gpus,
            chosen.warm_up + chosen.duration,
            chosen.time_scale,
            chosen.max_prompt_tokens,
            chosen.max_tokens,
        )
        return traces.open_trace(text, wanted)

    def _about(self, registry: Registry, command: list[str]) -> dict[str, Any]:
        chosen = self._chosen
        return {
            "commands": [shlex.join(command)],
            "machine": describe_machine(),
            "versions": versions(),
            "date": datetime.now(UTC).date().isoformat(),
            "calibration": self._calibration.machine,
            "warm_up_s": chosen.warm_up,
            "judged_s": chosen.duration,
            "engine": registry.pool.engine,
            "workers_per_device": registry.pool.workers_per_device,
            "objectives": {it.name: {"ttft_s": it.slo.ttft, "tpot_s": it.slo.tpot} for it in registry.models},
        }

    # runs

    def keys(self, gateway: GatewaySetup) -> Iterator[Key]:
        """Yields the keys of missing runs. Repetitions are far apart in time, policies close together."""
        chosen = self._chosen
        memory = None if gateway.memory is None else gateway.memory / GIB
        for repeat, name, rate, policy in product(
            range(1, chosen.repeats + 1), self._traces, chosen.rate_scales, chosen.policies
        ):
            key = Key(self._gpus, len(self._models), memory, gateway.mps, policy, name, rate, repeat)
            if not self.results.has(key):
                yield key

    async def run(self) -> None:
        """Run until everything is done or the time budget is used up."""
        for mps, memory in product(self._chosen.mps, self._memories):
            gateway = GatewaySetup(mps, memory)
            left = list(self.keys(gateway))
            if self._chosen.simulate_only:
                for key in left:
                    self._predict(gateway, key)
            while left and not self._chosen.simulate_only and self._time_for(self._startup):
                await self._serve(gateway, left)
        self._write()

    async def _serve(self, gateway: GatewaySetup, left: list[Key]) -> None:
        """Execute runs of `left` in one gateway while there is time, until one fails, removing them from the list."""
        content = variant(self._content, POLICY, mps=gateway.mps, memory=gateway.memory)
        began, name = time.monotonic(), self._file_name(f"gateway-{time.time():.0f}")
        try:
            async with session(content, as_registry(content), self._chosen.seed, self._chosen.details, name) as serving:
                self._startup = time.monotonic() - began
                say(f"all is warm after {self._startup:.0f} s")
                while left:
                    if not self._time_for(0.0):
                        left.clear()
                        return
                    await self._measure(serving, gateway, left.pop(0))
        except StudyError as error:
            self._fault(f"{error}")
            if time.monotonic() - began < self._startup or not self._startup:
                left.clear()  # the gateway does not start, so none of them can run

    async def _measure(self, serving: Session, gateway: GatewaySetup, key: Key) -> None:
        began = time.monotonic()
        trace = self._traces[key.trace].scaled(key.rate_scale, self._chosen.seed).stored()
        slos = {model.name: model.slo for model in self._registry(gateway, key).models}
        found = await serving.run(
            key.policy, traces.plan_of(trace), {n: ClientSlo(s.ttft, s.tpot) for n, s in slos.items()}
        )
        self._note(gateway, key, trace, found)
        self._overhead = max(self._overhead, time.monotonic() - began - trace.duration)

    def _predict(self, gateway: GatewaySetup, key: Key) -> None:
        self._note(gateway, key, self._traces[key.trace].scaled(key.rate_scale, self._chosen.seed).stored(), None)

    def _note(self, gateway: GatewaySetup, key: Key, trace: Trace, found: MeasuredRun | None) -> None:
        """Add a row, with None for figures that were not measured, and rewrite the report."""
        registry, after = self._registry(gateway, key), self._chosen.warm_up
        slos = {model.name: model.slo for model in registry.models}
        real = [] if found is None else measured(found.outcomes, after)
        virtual = simulate(registry, trace, self._calibration, mps=gateway.mps, after=after)
        ours, theirs = shares(real, slos), shares(virtual, slos)
        figures = {
            "requests": len(real or virtual),
            "failed": sum(it.ttft is None for it in real) if found is not None else None,
            **asdict(ours),
            **{f"simulated_{name}": share for name, share in asdict(theirs).items()},
        }
        details = {"models": by_model(real, virtual, slos), **({} if found is None else _facts(found, after))}
        self.results.add(key, figures, details)
        self._write()
        say(f"{key}: both {_percent(ours.both)}, simulated {_percent(theirs.both)}")
        if found is not None and self._chosen.details is not None:
            entries = [entry_of(outcome) for outcome in found.outcomes]
            (self._chosen.details / f"{self._file_name(str(key))}.json").write_text(json.dumps(entries, indent=1))

    def _registry(self, gateway: GatewaySetup, key: Key) -> Registry:
        return as_registry(variant(self._content, key.policy, mps=gateway.mps, memory=gateway.memory))

    def _file_name(self, text: str) -> str:
        return re.sub(r"[^\w.-]+", "-", text)

    def _fault(self, text: str) -> None:
        say(text)
        self.results.faults.append(text)
        self._write()

    def _write(self) -> None:
        self.results.write()
        write_page(self.results)

    def _time_for(self, before: float) -> bool:
        """Whether a run that begins in `before` seconds would end within the time budget."""
        if self._ends is None:
            return True
        needed: float = before + self._chosen.warm_up + self._chosen.duration + (self._overhead or OVERHEAD)
        there = self._ends - time.monotonic()
        if needed > there:
            say(f"{there:.0f} s are left, and a run needs {needed:.0f}: the rest is for --resume")
        return bool(needed <= there)


def _facts(found: MeasuredRun, after: float) -> dict[str, Any]:
    judged = [outcome for outcome in found.outcomes if outcome.arrival.at >= after]
    failures: dict[str, int] = {}
    for outcome in judged:
        if not outcome.completed:
            kind = f"{outcome.arrival.model}: {outcome.error or 'unfinished'}"
            failures[kind] = failures.get(kind, 0) + 1
    return {
        "failures": failures,
        "kept_schedule": found.figures["kept_schedule"],
        "late_p99_s": found.figures["lateness_s"]["p99"],
        "prompt_tokens": found.figures["all"]["prompt_tokens"],
        "answer_tokens": found.figures["all"]["answer_tokens"],
        "began_after_s": found.began,
        "took_s": found.took,
        "workers_replaced": found.replaced,
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"
