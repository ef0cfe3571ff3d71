"""Plans the measurements of Prism's own workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.calibration.worker_rows import SPLITS

PARTS = ("alone", "idle", "uneven", "together")
"""One engine alone on the device; one busy among idle active models; contexts of different lengths; several busy."""
BATCHES = (1, 4, 8, 16, 32)
PROMPT = 256
"""Length in tokens of prompts whose length does not matter."""
PROMPTS = (256, 1024, 4096)
SMALL_COPIES, LARGE_COPIES = 4, 2
KV_SPLITS = (SPLITS, 16, 32)
EVEN, UNEVEN = [1015] * 13, [6000] + [600] * 12
"""Context lengths with about the same total."""
PART_SECONDS = 75.0
"""Steps of a part that have not begun after this many seconds are skipped."""
STEP_SECONDS = 30.0
USE_SECONDS = 300.0
"""Timeout for a model's first use, which compiles kernels on a new machine."""
FIRST_USE = "first use"
"""A part of every run."""


@dataclass(frozen=True)
class WorkerSeat:
    """A model in the registry."""

    name: str
    model: str
    """Its shape."""
    kv_splits: int = SPLITS


@dataclass(frozen=True)
class GroupMember:
    """One engine of a group; with a batch of 0 it prefills one prompt after another."""

    seat: WorkerSeat
    batch: int
    prompt: int = PROMPT


@dataclass(frozen=True)
class WorkerPlan:
    seats: list[WorkerSeat]
    alone: list[WorkerSeat]
    """One seat of each size, smallest first."""
    uneven: list[WorkerSeat]
    groups: list[list[GroupMember]]


def make_worker_plan(models: Sequence[str]) -> WorkerPlan:
    """The plan for `models`, which are ordered by size."""
    small, middle, large = models[0], models[len(models) // 2], models[-1]
    smalls = _copies(small, SMALL_COPIES)
    larges = _copies(large, LARGE_COPIES)
    others = [WorkerSeat(f"{model}-0", model) for model in models if model not in (small, large)]
    first = next((seat for seat in (*others, *larges) if seat.model == middle), smalls[0])
    split = [WorkerSeat(f"{middle}-k{splits}", middle, splits) for splits in KV_SPLITS if splits != SPLITS]
    return WorkerPlan(
        seats=[*smalls, *others, *larges, *split],
        alone=[smalls[0], *others, larges[0]],
        uneven=[first, *split],
        groups=[*_decoding(smalls, larges), *_prefilling(smalls, larges)],
    )


def _copies(model: str, count: int) -> list[WorkerSeat]:
    return [WorkerSeat(f"{model}-{number}", model) for number in range(count)]


def _decoding(smalls: list[WorkerSeat], larges: list[WorkerSeat]) -> list[list[GroupMember]]:
    groups = [smalls[:2], smalls, larges, [larges[0], smalls[0]], [*larges, *smalls]]
    return [[GroupMember(seat, batch) for seat in group] for batch in (1, 16) for group in groups]


def _prefilling(smalls: list[WorkerSeat], larges: list[WorkerSeat]) -> list[list[GroupMember]]:
    """Prompts whose step is as long as launching its kernels, and those whose step is longer; of each before others."""
    beside = ((larges[0], smalls), (larges[0], larges[1:]), (smalls[0], larges))
    return [
        [GroupMember(one, 0, tokens), *(GroupMember(other, 4) for other in others)]
        for tokens in (PROMPT, 2048)
        for one, others in beside
    ]
