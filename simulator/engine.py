"""The engine of one active model: continuous batching, chunked prefill before decode, paged KV cache under a limit.

It has no clock and no heap: `begin` says when its next run of steps ends, and `complete` what came of it. A run is one
prefill step, or as many decode steps as there are until something of its own changes. What happens meanwhile cuts it
short at the end of the step in progress.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from simulator.costs import Costs
from simulator.lines import Line
from simulator.sharing import ALONE, Beside, Load

DECODE_AHEAD = 64
"""Decode steps for which there must be room in the KV cache when a request joins those that run: else it would soon
have to leave again."""
SLACK = 1e-9
"""Seconds by which two times may differ and still be the same."""


@dataclass(slots=True)
class Job:
    """A request in an engine."""

    id: int
    deadline: float
    prompt_tokens: int
    output_tokens: int
    generated: int = 0
    prefilled: int = 0
    """Tokens that the present prefill has brought into the KV cache."""

    @property
    def context(self) -> int:
        """Tokens of prompt and answer so far; after a retraction all of them are to be prefilled."""
        return self.prompt_tokens + self.generated


@dataclass(slots=True)
class Run:
    """Steps under way: one of prefill, or decode steps each of which is longer than the one before by `growth`."""

    began: float
    first: float
    """Seconds of the first step."""
    pieces: list[tuple[Job, int]] = field(default_factory=list)
    """What a prefill step takes of which prompt; empty in a decode run."""
    growth: float = 0.0
    steps: int = 1

    def end(self) -> float:
        return self.began + self._after(self.steps)

    def steps_done(self, now: float) -> int:
        """Steps that end at `now` or before."""
        elapsed = now - self.began + SLACK
        done = int(elapsed / self.first)
        if self.growth:
            middle = self.first - self.growth / 2
            done = int((math.sqrt(middle * middle + 2 * self.growth * elapsed) - middle) / self.growth)
        return min(self.steps, done)

    def cut(self, now: float) -> None:
        """Let it end with the step that is in progress at `now`."""
        done = self.steps_done(now)
        between = done > 0 and self.began + self._after(done) >= now - SLACK
        self.steps = min(self.steps, done if between else done + 1)

    def _after(self, steps: int) -> float:
        """Seconds that so many steps take."""
        return self.first * steps + self.growth * steps * (steps - 1) / 2


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run brought: requests that have their first token, and requests that are complete."""

    first_tokens: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)


class Engine:
    """`max_running` bounds the batch, `kv_limit` (bytes) the KV cache; `first_use`: its process is new to its model."""

    def __init__(self, costs: Costs, max_running: int, kv_limit: int, *, first_use: bool = False) -> None:
        self.run: Run | None = None
        self.load: Load | None = None
        """What the run's steps ask of the GPU."""
        self.first_use = first_use
        """Whether it is still to come."""
        self._costs = costs
        self._max_running = max_running
        self._room = costs.tokens_in(kv_limit)
        self._jobs: dict[int, Job] = {}
        """All that are wanted, wherever they are."""
        self._waiting: list[tuple[float, int, Job]] = []
        """A heap by deadline."""
        self._prefilling: Job | None = None
        """Has begun, and more of its prompt is to come."""
        self._running: dict[int, Job] = {}
        """Those whose prompts are in the KV cache, in the order in which they joined."""
        self._tokens = 0
        """Of the KV cache: taken, or promised to a prompt that is being prefilled."""
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
        """Tokens of prompts that were prefilled and of answers that were decoded so far."""
        return self._prefilled, self._decoded + self._under_way(now)

    def _under_way(self, now: float) -> int:
        """Tokens that the run has decoded by now."""
        if self.run is None or self.run.pieces:
            return 0
        return self.run.steps_done(now) * len(self._running)

    # from outside: it counts from the next run on, hence the cut

    def submit(self, job: Job) -> None:
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
        """Let the run end with the step that is in progress; returns when that is, or None without a run."""
        if self.run is None:
            return None
        self.run.cut(now)
        return self.run.end()

    # steps

    def begin(self, now: float, beside: Beside = ALONE) -> float | None:
        """Begin the next run among what is around it; returns its end, None with nothing to do."""
        if self._aborted:
            self._drop_aborted()
        self._retract()
        if pieces := self._admit():
            self.run = Run(now, self._prefill(pieces, beside), pieces)
        elif self._running:
            step = self._decode(beside)
            steps = min(self._steps_ahead(), step.steps)
            self.run = Run(now, step.first, growth=step.growth, steps=int(steps))
        else:
            return None
        return self.run.end()

    def _prefill(self, pieces: list[tuple[Job, int]], beside: Beside) -> float:
        """Seconds of a step."""
        costs = self._costs
        work = sum(costs.prefill_work(tokens, job.prefilled) for job, tokens in pieces)
        self.load = costs.prefill_load(work)
        first_use, self.first_use = self.first_use, False
        return costs.prefill_beside(work, beside) + costs.prefill_host + first_use * costs.first_use

    def _decode(self, beside: Beside) -> Line:
        """Seconds of steps."""
        longest = max(job.context for job in self._running.values())
        step, self.load = self._costs.decode_beside(len(self._running), self._tokens, longest, beside)
        return step

    def complete(self) -> Outcome:
        """End the run; returns what it brought to those that are still wanted."""
        run, self.run = self.run, None
        assert run is not None
        outcome = Outcome()
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

    def _end_piece(self, job: Job, tokens: int, outcome: Outcome) -> None:
        """A prompt that is whole has its next token at once."""
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

    def _end_if_complete(self, job: Job, outcome: Outcome) -> None:
        if job.generated < job.output_tokens:
            return
        self._leave(job)
        if self._jobs.pop(job.id, None) is not None:
            outcome.finished.append(job.id)

    def _leave(self, job: Job) -> None:
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
        """Who joined last waits again, until there is room for a step of the others."""
        while self._running and self._tokens + len(self._running) > self._room:
            job = next(reversed(self._running.values()))
            self._leave(job)
            self._wait_again(job)
        if self._prefilling is not None and self._tokens > self._room:
            self._tokens -= self._prefilling.context
            self._wait_again(self._prefilling)
            self._prefilling = None

    def _wait_again(self, job: Job) -> None:
        job.prefilled = 0
        heapq.heappush(self._waiting, (job.deadline, job.id, job))

    def _admit(self) -> list[tuple[Job, int]]:
        """The next prefill step: earliest deadlines first, as far as the chunk and the KV cache go."""
        pieces: list[tuple[Job, int]] = []
        left = self._costs.chunk
        while left > 0 and (job := self._prefilling or self._next(len(pieces))) is not None:
            tokens = min(left, job.context - job.prefilled)
            pieces.append((job, tokens))
            left -= tokens
            self._prefilling = job if job.prefilled + tokens < job.context else None
        return pieces

    def _next(self, joining: int) -> Job | None:
        """Take the first of the waiting into the KV cache, if it has room for it."""
        others = len(self._running) + joining
        if not self._waiting or others >= self._max_running:
            return None
        job = self._waiting[0][2]
        ahead = min(DECODE_AHEAD, job.output_tokens - job.generated)
        if self._tokens + job.context + (others + 1) * ahead > self._room:
            return None
        heapq.heappop(self._waiting)
        self._tokens += job.context
        return job

    def _steps_ahead(self) -> int:
        """Decode steps until a request is complete or the KV cache is full."""
        shortest = min(job.output_tokens - job.generated for job in self._running.values())
        return min(shortest, (self._room - self._tokens) // len(self._running))
