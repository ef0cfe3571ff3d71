"""What became of each request of a load test. All times are seconds."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.load.workload import Arrival


@dataclass(slots=True)
class RequestOutcome:
    """One request. Moments count from the start of the run."""

    arrival: Arrival
    sent: float = 0.0
    first_token: float | None = None
    last_token: float = 0.0
    ended: float | None = None
    """None while it runs, and for ever if the run was stopped first."""
    error: str | None = None
    """The kind of failure, None for an answer that was given to its end."""
    gaps: list[float] = field(default_factory=list)
    """Between two tokens; 0 for those that came together."""
    chunks: int = 0
    """Events with text in them."""
    prompt_tokens: int | None = None
    """As the server counted."""
    completion_tokens: int | None = None
    """Likewise."""
    worker: str | None = None
    """Which one answered, and on which device, if the server says so."""
    device: str | None = None

    def token(self, at: float) -> None:
        """A piece of text has arrived."""
        if self.first_token is None:
            self.first_token = at
        else:
            self.gaps.append(at - self.last_token)
        self.last_token = at
        self.chunks += 1

    # All from the scheduled arrival and not from the sending: a client that falls behind must not look good.

    @property
    def lateness(self) -> float:
        return self.sent - self.arrival.at

    @property
    def ttft(self) -> float | None:
        """To the first token; an answer without any counts with its end."""
        first = self.first_token if self.first_token is not None else self.ended
        return None if first is None else first - self.arrival.at

    @property
    def tpot(self) -> float | None:
        """Per token after the first; None where there is no second."""
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
    """A model's objectives in seconds; None where there is none."""

    ttft: float | None = None
    tpot: float | None = None

    def ttft_met(self, outcome: RequestOutcome) -> bool:
        """A failed request has missed every objective."""
        return outcome.completed and _within(outcome.ttft, self.ttft)

    def tpot_met(self, outcome: RequestOutcome) -> bool:
        """Likewise; an answer of one token has no TPOT to miss."""
        return outcome.completed and _within(outcome.tpot, self.tpot)

    def met(self, outcome: RequestOutcome) -> bool:
        return self.ttft_met(outcome) and self.tpot_met(outcome)


def _within(measured: float | None, objective: float | None) -> bool:
    return measured is None or objective is None or measured <= objective
