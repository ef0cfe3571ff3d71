"""The results of a simulated run, request by request. Times are in seconds from the trace's start."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.traces.trace import TraceRequest


@dataclass(slots=True)
class SimulatedAnswer:
    """The outcome of one request. `ended` is `finished` or why it did not finish; empty while it is in progress."""

    asked: TraceRequest
    first_token_at: float | None = None
    finished_at: float | None = None
    ended: str = ""

    @property
    def ttft(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.asked.at

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; 0 for an answer of one token."""
        if self.first_token_at is None or self.finished_at is None:
            return None
        return (self.finished_at - self.first_token_at) / max(1, self.asked.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class MemorySample:
    """Bytes of weights and mapped KV cache of each active model at one time, summed over all devices."""

    at: float
    held: dict[str, int]


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """The result of a run; `seconds` is the trace's length."""

    answers: list[SimulatedAnswer]
    seconds: float
    activations: int
    migrations: int
    """Activations of a model that another worker was already serving."""
    memory: list[MemorySample] = field(default_factory=list)
    """Empty unless memory was sampled."""
