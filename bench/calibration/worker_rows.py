"""What was measured of Prism's own workers, through the gateway. Seconds, tokens."""

from __future__ import annotations

import statistics
from typing import Any

from msgspec import Struct

SPLITS = 8
"""SGLang's own `triton_attention_num_kv_splits`."""


class Steps(Struct, frozen=True, kw_only=True):
    """Decode steps of one engine while no other has anything to do."""

    part: str
    mps: bool
    model: str
    beside: int
    """Other models that are active, and idle."""
    contexts: list[int]
    """Tokens of each request's prompt."""
    said: float = 0.0
    """Tokens of each answer in the middle of the measurement."""
    kv_splits: int = SPLITS
    seconds: float
    """Of a step."""

    @property
    def batch(self) -> int:
        return len(self.contexts)

    @property
    def context(self) -> float:
        """Tokens of all requests together."""
        return sum(self.contexts) + self.batch * self.said

    @property
    def longest(self) -> float:
        return max(self.contexts) + self.said


class FirstTokens(Struct, frozen=True, kw_only=True):
    """From sending a prompt to its first token, on an idle engine."""

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
    """What a prompt does to a request that decodes: the gaps between its tokens with a prefill in them, and others."""

    part: str
    mps: bool
    model: str
    beside: int
    tokens: int
    seconds: list[float]
    plain: float

    @property
    def median(self) -> float:
        """Of what the prefill adds."""
        return statistics.median(self.seconds) - self.plain


class FirstUse(Struct, frozen=True, kw_only=True):
    """The first token of a model in its process, and later ones. `rehearsed`: it was new to the machine as well."""

    part: str
    mps: bool
    model: str
    first: float
    later: float
    rehearsed: bool


class Busy(Struct, frozen=True, kw_only=True):
    """One of several engines at once. `seconds` are of a decode step; with a batch of 0 of a first token, one prompt
    after another."""

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
    """Of rows that this bench has not measured itself, by part and whether it was with MPS."""
    steps: list[Steps] = []
    firsts: list[FirstTokens] = []
    stalls: list[Stalls] = []
    first_uses: list[FirstUse] = []
    groups: list[EngineGroup] = []

    def forget(self, part: str, mps: bool) -> None:
        """Before it is measured again."""
        self.sources.pop(source_key(part, mps), None)
        everything: tuple[list[Any], ...] = (self.steps, self.firsts, self.stalls, self.first_uses, self.groups)
        for rows in everything:
            rows[:] = [row for row in rows if (row.part, row.mps) != (part, mps)]


def source_key(part: str, mps: bool) -> str:
    return f"{part}, {'MPS' if mps else 'time slices'}"
