"""The results of a load test's requests. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.load.workload import Arrival


@dataclass(slots=True)
class RequestOutcome:
    """The result of one request. Points in time count from the start of the run."""

    arrival: Arrival
    sent: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0
    ended: float | None = None
    """None while it runs, or if the run was stopped before it ended."""
    error: str | None = None
    """The kind of failure; None for a complete answer."""
    gaps: list[float] = field(default_factory=list)
    """Times between tokens; 0 for tokens that came together."""
    chunks: int = 0
    """Number of events with text."""
    prompt_tokens: int | None = None
    """Prompt tokens as counted by the server."""
    completion_tokens: int | None = None
    """Output tokens as counted by the server."""
    worker: str | None = None
    """The worker that answered and its device, if the server tells."""
    device: str | None = None

    def token(self, at: float) -> None:
        """Record the arrival of a piece of text."""
        if self.first_token is None:
            self.first_token = at
        else:
            self.gaps.append(at - self.last_token)
        self.last_token = at
        self.chunks += 1

    # Times count from the scheduled arrival, not from sending: a client that falls behind must not look good.

    @property
    def lateness(self) -> float:
        return self.sent - self.arrival.at

    @property
    def ttft(self) -> float | None:
        """Seconds to the first token, or to the end of an answer without any."""
        first = self.first_token if self.first_token is not None else self.ended
        return None if first is None else first - self.arrival.at

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None if there is only one."""
        if self.first_token is None or self.output_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.output_tokens - 1)

    @property
    def e2e(self) -> float | None:
        return None if self.ended is None else self.ended - self.arrival.at

    @property
    def output_tokens(self) -> int:
        return self.chunks if self.completion_tokens is None else self.completion_tokens

    @property
    def completed(self) -> bool:
        return self.ended is not None and self.error is None


@dataclass(frozen=True)
class ClientSlo:
    """A model's objectives in seconds; None for none."""

    ttft: float | None = None
    tpot: float | None = None

    def ttft_met(self, outcome: RequestOutcome) -> bool:
        """Whether TTFT is within its objective; a failed request misses every objective."""
        return outcome.completed and _within(outcome.ttft, self.ttft)

    def tpot_met(self, outcome: RequestOutcome) -> bool:
        """Whether TPOT is within its objective; an answer of one token always meets it."""
        return outcome.completed and _within(outcome.tpot, self.tpot)

    def met(self, outcome: RequestOutcome) -> bool:
        return self.ttft_met(outcome) and self.tpot_met(outcome)


def _within(measured: float | None, objective: float | None) -> bool:
    return measured is None or objective is None or measured <= objective
