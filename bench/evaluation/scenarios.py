"""The scenarios to compare: models, number of GPUs, workloads and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from config.registry import PolicyName

Measure = Literal["rate", "gpus", "goodput"]
"""The highest rate held; the fewest GPUs that hold the fixed rate; goodput at fixed rates."""


@dataclass(frozen=True, slots=True)
class ModelGroup:
    """Models of one size, named as in `sizes`."""

    size: str
    number: int
    tensor_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    text: str
    models: tuple[ModelGroup, ...]
    gpus: int
    """Number of GPUs on which the reference policy sets the rate."""
    rate: float
    """The trace's own rate over all models in requests per second; corresponds to scale 1."""
    workloads: tuple[str, ...]
    measures: tuple[Measure, ...]
    seeds: tuple[int, ...]
    policies: tuple[PolicyName, ...] | None = None
    """The policies to compare; None for all."""
    duration: float = 480.0
    warm_up: float = 120.0
    """Seconds at the beginning that are simulated but not judged, while models are activated and demand is learned."""

    @property
    def number_of_models(self) -> int:
        return sum(group.number for group in self.models)


RECORDED = ("servegen", "prism-27", "azure")
GOODPUT_AT = (0.5, 1.0, 1.5)
"""Multiples of the trace's own rate at which goodput is compared."""
HEADLINE = 1.0
"""The multiple that goals refer to."""

_SMALL = (
    ModelGroup("llama-1b", 2),
    ModelGroup("qwen3-1.7b", 1),
    ModelGroup("llama-3b", 2),
    ModelGroup("qwen3-4b", 1),
    ModelGroup("llama-8b", 2),
)
_EIGHTEEN = (
    ModelGroup("llama-1b", 6),
    ModelGroup("qwen3-1.7b", 3),
    ModelGroup("llama-3b", 4),
    ModelGroup("qwen3-4b", 2),
    ModelGroup("llama-8b", 3),
)
_FIFTY_EIGHT = (
    ModelGroup("llama-1b", 15),
    ModelGroup("qwen3-1.7b", 14),
    ModelGroup("llama-3b", 14),
    ModelGroup("qwen3-4b", 4),
    ModelGroup("llama-8b", 4),
    ModelGroup("qwen3-14b", 1),
    ModelGroup("mistral-24b", 1, tensor_parallel=2),
    ModelGroup("mistral-24b", 1, tensor_parallel=4),
    ModelGroup("qwen3-32b", 2, tensor_parallel=4),
    ModelGroup("llama-70b", 2, tensor_parallel=8),
)

SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "eight",
            "8 models of 1B to 8B on 2 GPUs",
            _SMALL,
            gpus=2,
            rate=4.0,
            workloads=("zipf", *RECORDED),
            measures=("rate", "gpus"),
            seeds=(1, 2),
        ),
        Scenario(
            "eighteen",
            "18 models of 1B to 8B on 5 GPUs",
            _EIGHTEEN,
            gpus=5,
            rate=10.0,
            workloads=("zipf", *RECORDED),
            measures=("gpus",),
            seeds=(1, 2),
        ),
        Scenario(
            "fifty-eight",
            "58 models of 1B to 70B on 16 GPUs",
            _FIFTY_EIGHT,
            gpus=16,
            rate=24.0,
            workloads=("zipf", *RECORDED),
            measures=("gpus",),
            seeds=(1,),
            policies=("prism", "prism-paper", "space"),
        ),
        Scenario(
            "unequal",
            "four unequal models, all of them always active, on 2 GPUs: nothing to gain by moving",
            (
                ModelGroup("llama-1b", 1),
                ModelGroup("llama-3b", 1),
                ModelGroup("qwen3-4b", 1),
                ModelGroup("llama-8b", 1),
            ),
            gpus=2,
            rate=4.0,
            workloads=("steady",),
            measures=("goodput",),
            seeds=(1, 2, 3, 4, 5),
        ),
        Scenario(
            "rotating",
            "six models on 2 GPUs, of which another pair is hot every 120 s",
            (ModelGroup("llama-8b", 6),),
            gpus=2,
            rate=4.0,
            workloads=("rotating",),
            measures=("goodput",),
            seeds=(1, 2, 3, 4, 5),
            duration=840.0,
        ),
    )
}


def quick(scenario: Scenario) -> Scenario:
    """A shortened version of the scenario, for coarse figures in little time."""
    return replace(
        scenario,
        seeds=scenario.seeds[:1],
        workloads=scenario.workloads[:1],
        duration=180.0,
        warm_up=60.0,
    )


def chosen(names: Sequence[str] | None, *, is_quick: bool) -> list[Scenario]:
    """The named scenarios in order of definition; all if there are no names."""
    found = [scenario for name, scenario in SCENARIOS.items() if names is None or name in names]
    return [quick(scenario) for scenario in found] if is_quick else found
