"""Measurements of Prism's own workers, through the gateway. Times in seconds, lengths in tokens."""

from __future__ import annotations

import statistics
from typing import Any

from msgspec import Struct

SPLITS = 8
"""SGLang's own `triton_attention_num_kv_splits`."""


class Steps(Struct, frozen=True, kw_only=True):
    """Decode steps of one engine while all others are idle."""

    part: str
    mps: bool
    model: str
    beside: int
    """Number of other models that are active but idle."""
    contexts: list[int]
    """Prompt tokens of each request."""
    said: float = 0.0
    """Output tokens of each request in the middle of the measurement."""
    kv_splits: int = SPLITS
    seconds: float
    """Seconds per step."""

    @property
    def batch(self) -> int:
        return len(self.contexts)

    @property
    def context(self) -> float:
        """Total context tokens of all requests."""
        return sum(self.contexts) + self.batch * self.said

    @property
    def longest(self) -> float:
        return max(self.contexts) + self.said


class FirstTokens(Struct, frozen=True, kw_only=True):
    """TTFT on an idle engine."""

    part: str
    mps: bool
    model: str
    beside: int
    tokens: int
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Stalls(Struct, frozen=True, kw_only=True):
    """Gaps between tokens of a decoding request, with and without another prompt's prefill in them."""

    part: str
    mps: bool
    model: str
    beside: int
    tokens: int
    seconds: list[float]
    plain: float

    @property
    def median(self) -> float:
        """Median of the time a prefill adds to a gap."""
        return statistics.median(self.seconds) - self.plain


class FirstUse(Struct, frozen=True, kw_only=True):
    """TTFT of a model's first use in a process, and later ones. `rehearsed`: it was new to the machine too."""

    part: str
    mps: bool
    model: str
    first: float
    later: float
    rehearsed: bool


class Busy(Struct, frozen=True, kw_only=True):
    """One of several busy engines. `seconds` is the duration of a decode step; with a batch of 0, the TTFT of prompts
    sent one after another."""

    model: str
    batch: int
    prompt: int
    said: float = 0.0
    seconds: float


class EngineGroup(Struct, frozen=True, kw_only=True):
    part: str
    mps: bool
    members: list[Busy]


class WorkerRows(Struct, kw_only=True):
    sources: dict[str, str] = {}
    """Sources of rows that were not measured by this benchmark, by part and whether MPS was used."""
    steps: list[Steps] = []
    firsts: list[FirstTokens] = []
    stalls: list[Stalls] = []
    first_uses: list[FirstUse] = []
    groups: list[EngineGroup] = []

    def forget(self, part: str, mps: bool) -> None:
        """Drop a part's rows before it is measured again."""
        self.sources.pop(source_key(part, mps), None)
        everything: tuple[list[Any], ...] = (self.steps, self.firsts, self.stalls, self.first_uses, self.groups)
        for rows in everything:
            rows[:] = [row for row in rows if (row.part, row.mps) != (part, mps)]


def source_key(part: str, mps: bool) -> str:
    return f"{part}, {'MPS' if mps else 'time slices'}"
