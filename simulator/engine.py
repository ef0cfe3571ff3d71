"""The engine of one active model: continuous batching, chunked prefill before decode, paged KV cache under a limit.

It has no clock and no event queue: `begin` returns when its next run of steps ends, `complete` returns the outcome. A
run is one prefill step, or all decode steps until a request completes or the KV cache is full. Anything that happens
during a run cuts it short at the end of the step in progress.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from simulator.costs import Costs
from simulator.sharing import ALONE, Contention, StepLoad
from simulator.step_times import StepTimes

DECODE_AHEAD = 64
"""Decode steps for which the KV cache must have room when a request is admitted, so that it is not soon retracted."""
SLACK = 1e-9
"""Two times that differ by less than this many seconds are considered equal."""


@dataclass(slots=True)
class VirtualRequest:
    """A request in an engine."""

    id: int
    deadline: float
    prompt_tokens: int
    output_tokens: int
    generated: int = 0
    prefilled: int = 0
    """Tokens that the prefill in progress has brought into the KV cache."""

    @property
    def context(self) -> int:
        """Tokens of prompt and answer so far; after a retraction all of them must be prefilled again."""
        return self.prompt_tokens + self.generated


@dataclass(slots=True)
class StepRun:
    """A run in progress: one prefill step, or decode steps each of which takes `growth` longer than the one before."""

    began: float
    first: float
    """Duration of the first step, in seconds."""
    pieces: list[tuple[VirtualRequest, int]] = field(default_factory=list)
    """The prompts in a prefill step, with the tokens taken of each; empty in a decode run."""
    growth: float = 0.0
    steps: int = 1

    def end(self) -> float:
        return self.began + self._after(self.steps)

    def steps_done(self, now: float) -> int:
        """Number of steps that have ended by `now`."""
        elapsed = now - self.began + SLACK
        done = int(elapsed / self.first)
        if self.growth:
            # The positive n that solves elapsed = first * n + growth * n * (n - 1) / 2: the inverse of `_after`.
            middle = self.first - self.growth / 2
            done = int((math.sqrt(middle * middle + 2 * self.growth * elapsed) - middle) / self.growth)
        return min(self.steps, done)

    def cut(self, now: float) -> None:
        """End the run with the step that is in progress at `now`."""
        done = self.steps_done(now)
        # Exactly between two steps, the next one has not begun and is not run.
        between = done > 0 and self.began + self._after(done) >= now - SLACK
        self.steps = min(self.steps, done if between else done + 1)

    def _after(self, steps: int) -> float:
        """Seconds that `steps` steps take."""
        return self.first * steps + self.growth * steps * (steps - 1) / 2


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The outcome of a run: requests that got their first token, and requests that finished."""

    first_tokens: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)


class VirtualEngine:
    """`max_running` bounds the batch, `kv_limit` the KV cache in bytes; `first_use`: the process is new to it."""

    def __init__(self, costs: Costs, max_running: int, kv_limit: int, *, first_use: bool = False) -> None:
        self.run: StepRun | None = None
        self.load: StepLoad | None = None
        """The load that the run's steps put on the GPU."""
        self.first_use = first_use
        """Whether the process has yet to prefill this model for the first time."""
        self._costs = costs
        self._max_running = max_running
        self._room = costs.tokens_in(kv_limit)
        self._jobs: dict[int, VirtualRequest] = {}
        """All requests that were not aborted, wherever they are."""
        self._waiting: list[tuple[float, int, VirtualRequest]] = []
        """A heap by deadline."""
        self._prefilling: VirtualRequest | None = None
        """The request whose prompt is partly prefilled."""
        self._running: dict[int, VirtualRequest] = {}
        """Requests that decode, in the order in which they joined the batch."""
        self._tokens = 0
        """Tokens in the KV cache, including those reserved for the prompt being prefilled."""
        self._aborted = False
        self._prefilled = self._decoded = 0

    @property
    def running(self) -> int:
        return len(self._running) + (self._prefilling is not None)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def mapped(self, now: float) -> int:
        """Bytes of KV cache in use."""
        return self._costs.mapped(self._tokens + self._under_way(now))

    def served(self, now: float) -> tuple[int, int]:
        """Tokens prefilled and tokens decoded so far."""
        return self._prefilled, self._decoded + self._under_way(now)

    def _under_way(self, now: float) -> int:
        """Tokens that the run in progress has decoded by `now`."""
        if self.run is None or self.run.pieces:
            return 0
        return self.run.steps_done(now) * len(self._running)

    # Calls from outside. They take effect with the next run, so the caller cuts the one in progress.

    def submit(self, job: VirtualRequest) -> None:
        self._jobs[job.id] = job
        heapq.heappush(self._waiting, (job.deadline, job.id, job))

    def abort(self, request: int) -> bool:
        """Drop a request; returns whether it was here."""
        found = self._jobs.pop(request, None) is not None
        self._aborted |= found
        return found

    def set_limit(self, nbytes: int) -> None:
        self._room = self._costs.tokens_in(nbytes)

    def cut(self, now: float) -> float | None:
        """End the run with the step in progress; returns when that step ends, or None without a run."""
        if self.run is None:
            return None
        self.run.cut(now)
        return self.run.end()

    # steps

    def begin(self, now: float, contention: Contention = ALONE) -> float | None:
        """Begin the next run under `contention`; returns when it ends, or None if there is nothing to do."""
        if self._aborted:
            self._drop_aborted()
        self._retract()
        if pieces := self._admit():
            self.run = StepRun(now, self._prefill(pieces, contention), pieces)
        elif self._running:
            step = self._decode(contention)
            steps = min(self._steps_ahead(), step.steps)
            self.run = StepRun(now, step.first, growth=step.growth, steps=int(steps))
        else:
            return None
        return self.run.end()

    def _prefill(self, pieces: list[tuple[VirtualRequest, int]], contention: Contention) -> float:
        """Seconds of a prefill step."""
        costs = self._costs
        work = sum(costs.prefill_work(tokens, job.prefilled) for job, tokens in pieces)
        self.load = costs.prefill_load(work)
        first_use, self.first_use = self.first_use, False
        return costs.contended_prefill(work, contention) + costs.prefill_host + first_use * costs.first_use

    def _decode(self, contention: Contention) -> StepTimes:
        """Durations of the next decode steps."""
        longest = max(job.context for job in self._running.values())
        step, self.load = self._costs.contended_decode(len(self._running), self._tokens, longest, contention)
        return step

    def complete(self) -> StepOutcome:
        """End the run; returns its outcome for the requests that were not aborted."""
        run, self.run = self.run, None
        assert run is not None
        outcome = StepOutcome()
        if run.pieces:
            for job, tokens in run.pieces:
                self._end_piece(job, tokens, outcome)
        else:
            decoded = len(self._running) * run.steps
            self._decoded += decoded
            self._tokens += decoded
            for job in list(self._running.values()):
                job.generated += run.steps
                self._end_if_complete(job, outcome)
        return outcome

    def _end_piece(self, job: VirtualRequest, tokens: int, outcome: StepOutcome) -> None:
        """Account for a prefilled piece; completing a prompt yields a token in the same step."""
        job.prefilled += tokens
        self._prefilled += tokens
        if job.prefilled < job.context:
            return
        job.generated += 1
        self._decoded += 1
        self._tokens += 1
        self._running[job.id] = job
        if job.generated == 1 and job.id in self._jobs:
            outcome.first_tokens.append(job.id)
        self._end_if_complete(job, outcome)

    def _end_if_complete(self, job: VirtualRequest, outcome: StepOutcome) -> None:
        if job.generated < job.output_tokens:
            return
        self._leave(job)
        if self._jobs.pop(job.id, None) is not None:
            outcome.finished.append(job.id)

    def _leave(self, job: VirtualRequest) -> None:
        del self._running[job.id]
        self._tokens -= job.context

    def _drop_aborted(self) -> None:
        self._aborted = False
        for job in [job for job in self._running.values() if job.id not in self._jobs]:
            self._leave(job)
        if self._prefilling is not None and self._prefilling.id not in self._jobs:
            self._tokens -= self._prefilling.context
            self._prefilling = None
        self._waiting = [entry for entry in self._waiting if entry[1] in self._jobs]
        heapq.heapify(self._waiting)

    # room in the KV cache

    def _retract(self) -> None:
        """Move the requests that joined last back to the queue until the others have room for another step."""
        while self._running and self._tokens + len(self._running) > self._room:
            job = next(reversed(self._running.values()))
            self._leave(job)
            self._wait_again(job)
        if self._prefilling is not None and self._tokens > self._room:
            self._tokens -= self._prefilling.context
            self._wait_again(self._prefilling)
            self._prefilling = None

    def _wait_again(self, job: VirtualRequest) -> None:
        job.prefilled = 0
        heapq.heappush(self._waiting, (job.deadline, job.id, job))

    def _admit(self) -> list[tuple[VirtualRequest, int]]:
        """Choose the next prefill step: earliest deadlines first, within the chunk size and the KV cache."""
        pieces: list[tuple[VirtualRequest, int]] = []
        left = self._costs.chunk
        while left > 0 and (job := self._prefilling or self._next(len(pieces))) is not None:
            tokens = min(left, job.context - job.prefilled)
            pieces.append((job, tokens))
            left -= tokens
            self._prefilling = job if job.prefilled + tokens < job.context else None
        return pieces

    def _next(self, joining: int) -> VirtualRequest | None:
        """Take the waiting request with the earliest deadline, if the KV cache has room for it."""
        others = len(self._running) + joining
        if not self._waiting or others >= self._max_running:
            return None
        job = self._waiting[0][2]
        # All requests grow at the same rate, so reserve the newcomer's decode steps for each of them.
        ahead = min(DECODE_AHEAD, job.output_tokens - job.generated)
        if self._tokens + job.context + (others + 1) * ahead > self._room:
            return None
        heapq.heappop(self._waiting)
        self._tokens += job.context
        return job

    def _steps_ahead(self) -> int:
        """Decode steps until the first request completes or the KV cache is full."""
        shortest = min(job.output_tokens - job.generated for job in self._running.values())
        return min(shortest, (self._room - self._tokens) // len(self._running))
