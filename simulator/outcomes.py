"""What became of each request of a simulated run. Times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.traces.trace import Request


@dataclass(slots=True)
class Answer:
    """One request of the trace. `ended` says how: `finished`, or why it was not; empty while it is under way."""

    asked: Request
    first_token_at: float | None = None
    finished_at: float | None = None
    ended: str = ""

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.asked.at

    @property
    def tpot(self) -> float | None:
        """Per token after the first; 0 of an answer that is one token long."""
        if self.first_token_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.first_token_at) / max(1, self.asked.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class MemorySample:
    """What active models hold of all devices together at one time, by model: weights and mapped KV cache, bytes."""

    at: float
    held: dict[str, int]


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run; `seconds` is the trace's length."""

    answers: list[Answer]
    seconds: float
    activations: int
    migrations: int
    """Activations of a model that another worker served already."""
    memory: list[MemorySample] = field(default_factory=list)
    """Empty unless it was asked for."""
