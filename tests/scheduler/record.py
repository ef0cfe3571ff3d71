"""Records the runs that `test_recordings.py` replays: `python -m tests.scheduler.record [FOLDER [TIMES]]`.

Record again only when decisions change on purpose: these files say what the scheduler decided before. With a FOLDER
elsewhere and so many TIMES as long runs, they are a wider net for one day's work.

A file holds several runs, one after the other, each as `scheduler.replay.recorded` writes it.
"""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, get_args
from unittest import mock

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from bench.evaluation.sizes import SIZES
from config.registry import ModelConfig, PolicyName, PoolConfig, Registry, SchedulerConfig, Slo, WeightStoreConfig
from config.shape import shape_of
from scheduler.actions import AnyAction
from scheduler.events import AnyEvent
from scheduler.learned.profile import Profile
from scheduler.replay.recorded import VERSION, Header, Step, encoder
from scheduler.scheduler import Scheduler
from simulator.calibration import read_calibration
from simulator.costs import Costs
from simulator.simulation import Simulation
from simulator.traces.synthetic_text import parse_synthetic
from tests.scheduler.test_random import Pool as RandomPool

HEADER = b'{"type":"prism recording"'
FOLDER = Path(__file__).parent / "recordings"
POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)
CAPACITY = 73 * 2**30
"""Bytes of a simulated GPU."""
RANDOM_RUNS = 250
SECONDS = 50.0
"""Of each simulated trace."""
FLEETS: dict[str, Sequence[tuple[str, int]]] = {
    "single": [(size, 1) for size in 3 * ("llama-8b", "qwen3-14b", "qwen3-32b", "mistral-24b")],
    "groups": [("llama-8b", 1), ("qwen3-32b", 2), ("qwen3-14b", 1), ("mistral-24b", 2), ("qwen3-32b", 1)] * 2,
}
"""Sizes of models, and over how many GPUs each is spread."""


class Recorded(Scheduler):
    """A scheduler that notes on `tape` what it was built from, and all that it is told and decides."""

    tape: list[bytes]

    def __init__(self, registry: Registry, weight_bytes: dict[str, int], **options: Any) -> None:
        super().__init__(registry, weight_bytes, **options)
        header = Header(
            version=VERSION,
            registry=registry,
            weight_bytes=dict(weight_bytes),
            capacities=dict(options.get("capacities") or {}),
            kv_bytes=dict(options.get("kv_bytes") or {}),
            profile=options.get("profile") or Profile(),
            staging=options.get("staging", True),
            validate=False,  # it is the decisions that are compared, and that shall be quick
        )
        self.tape.append(encoder.encode(header))

    def handle(self, event: AnyEvent, now: float) -> list[AnyAction]:
        actions = super().handle(event, now)
        self.tape.append(encoder.encode(Step(now, event, actions)))
        return actions


@contextmanager
def on_tape(scheduler: str) -> Iterator[list[bytes]]:
    """The lines that whoever builds a `scheduler`, named by its module, adds meanwhile."""
    tape: list[bytes] = []
    with mock.patch(scheduler, type("Taped", (Recorded,), {"tape": tape})):
        yield tape


def random_runs(times: int, *, groups: bool) -> list[bytes]:
    """Those with models on several devices, or those without. They are the same ones every time, as long as the rules
    of the random test stay as they are.
    """
    chosen = settings(
        max_examples=RANDOM_RUNS * times,
        stateful_step_count=60,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with on_tape("tests.scheduler.test_random.Scheduler") as tape:
        run_state_machine_as_test(RandomPool, settings=chosen)
    return [line for run in separate(tape) if (b'"tensor_parallel":2' in run[0]) is groups for line in run]


def separate(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """One run after the other."""
    run: list[bytes] = []
    for line in lines:
        if line.startswith(HEADER) and run:
            yield run
            run = []
        run.append(line)
    if run:
        yield run


def simulated_run(policy: PolicyName, fleet: str, times: int) -> list[bytes]:
    """More models than two GPUs have room for."""
    calibration, sizes = read_calibration(), FLEETS[fleet]
    shapes = [shape_of(dict(SIZES[size])) for size, _ in sizes]
    costs = {
        f"model-{index:0{len(str(len(sizes) - 1))}}": Costs(calibration, shape, shape.weight_bytes, gpus)
        for index, (shape, (_, gpus)) in enumerate(zip(shapes, sizes, strict=True))
    }
    models = tuple(
        ModelConfig(name=name, preload=True, tensor_parallel=gpus, slo=Slo(ttft=2.0, tpot=0.05))
        for name, (_, gpus) in zip(costs, sizes, strict=True)
    )
    registry = Registry(
        pool=PoolConfig(engine="sglang", devices=("cuda:0", "cuda:1"), workers_per_device=4, max_running=16),
        weight_store=WeightStoreConfig(host_memory=2**40),
        scheduler=SchedulerConfig(policy=policy),
        models=models,
    )
    seconds = SECONDS * times
    trace = parse_synthetic(f"zipf:models={len(sizes)},rate=4,duration={seconds:g},prompt_mean=1500,seed=3").trace()
    with on_tape("simulator.simulation.Scheduler") as tape:
        Simulation(registry, costs, calibration, capacity=CAPACITY, warmed=True).run(trace)
    return tape


def runs() -> Iterator[tuple[str, Callable[[int], list[bytes]]]]:
    """What is recorded, by the name of its file."""
    yield "random-single", partial(random_runs, groups=False)
    yield "random-groups", partial(random_runs, groups=True)
    for fleet in FLEETS:
        for policy in POLICIES:
            yield f"{fleet}-{policy}", partial(simulated_run, policy, fleet)


def main(folder: Path = FOLDER, times: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, recorded in runs():
        lines = recorded(times)
        file = folder / f"{name}.jsonl.gz"
        file.write_bytes(gzip.compress(b"\n".join(lines) + b"\n", mtime=0))
        print(f"{file}: {len(lines):,} lines, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((Path, int), sys.argv[1:], strict=False)))
