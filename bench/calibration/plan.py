"""Plans the measurements of a calibration run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement

from bench.calibration.measurements import RepeatedLoad

ROOM = 272_000
"""KV cache, in tokens, of a model's first engine: enough for 32 requests of 8192 tokens and their answers."""
ROOM_BESIDE = 16_384
"""KV cache, in tokens, of a model's other engines, which only run loads."""
STEPS = 64
"""Decode steps per round, after the first token."""
LARGE = 3
"""Number of engines of the smallest model that are measured together with one of the largest."""

Member = tuple[str, str]
"""Model and load."""


@dataclass(frozen=True)
class Prefill:
    model: str
    tokens: int
    times: int


@dataclass(frozen=True)
class Decode:
    model: str
    batch: int
    prompt: int
    times: int
    warm: bool


@dataclass(frozen=True)
class CalibrationPlan:
    engines: dict[str, int]
    """Number of engines per model, smallest model first."""
    room: int
    prefill: list[Prefill]
    decode: list[Decode]
    loads: list[RepeatedLoad]
    pairs: list[tuple[Member, ...]]
    groups: list[tuple[Member, ...]]
    pair_seconds: float
    group_seconds: float


def make_plan(models: Sequence[str], *, quick: bool, room: int = ROOM) -> CalibrationPlan:
    """Plan for at least two models, smallest first; measurements that need more than `room` tokens of KV cache are left
    out."""
    loads = [
        RepeatedLoad("decode 1", 1, 64, 128),
        RepeatedLoad("decode 32", 32, 64, 128),
        RepeatedLoad("prefill", 1, 2048 if quick else 4096, 1),
    ]
    loads = [load for load in loads if load.batch * (load.prompt + load.tokens) <= room]
    busy = [(model, load.name) for model in models for load in loads]
    return CalibrationPlan(
        engines={model: 2 if place else 1 + LARGE for place, model in enumerate(models)},
        room=room,
        prefill=[it for model in models for it in _prefill(model, quick) if it.tokens < room],
        decode=[it for model in models for it in _decode(model, quick) if it.batch * (it.prompt + STEPS + 1) <= room],
        loads=loads,
        pairs=list(combinations_with_replacement(busy, 2)),
        groups=[group for group in _groups(models[0], models[-1], quick) if set(group) <= set(busy)],
        pair_seconds=2.0 if quick else 3.0,
        group_seconds=4.0 if quick else 5.0,
    )


def _prefill(model: str, quick: bool) -> list[Prefill]:
    lengths = (64, 256, 1024, 4096, 8192) if quick else (64, 256, 1024, 2048, 4096, 8192, 16384)
    return [Prefill(model, tokens, 5 if tokens <= 4096 else 3) for tokens in lengths]


def _decode(model: str, quick: bool) -> list[Decode]:
    short = [Decode(model, batch, 64, 3, True) for batch in ((1, 8, 32) if quick else (1, 4, 8, 16, 32, 64))]
    long = [(2048, 1), (2048, 32)] if quick else [(2048, 1), (2048, 8), (2048, 32), (8192, 1), (8192, 8), (8192, 32)]
    # Long prompts take seconds each and only the steps after them are timed, with kernels warmed by the short ones.
    return short + [Decode(model, batch, prompt, 2 if batch == 1 else 1, False) for prompt, batch in long]


def _groups(small: str, large: str, quick: bool) -> list[tuple[Member, ...]]:
    one, many, prefill = (small, "decode 1"), (small, "decode 32"), (large, "prefill")
    large_many = (large, "decode 32")
    groups: list[tuple[Member, ...]] = [(one,) * 4, (large_many, large_many, many, many)]
    if not quick:
        groups += [(one,) * 3, (many,) * 4, (large_many, *(many,) * LARGE), (prefill, *(one,) * LARGE)]
    return groups
