"""Makes an exception in the Scheduler's loop end only the requests that cause it.

In SGLang 0.5.17 an exception leaves the loop, so one unexpected request ends the rank with all others. Here, the step
that raised is undone (`rebuild`), and all requests wait to be prefilled again. If only one request took part in the
step, that one is ended. Otherwise the participants run alone, one by one, newest first, until one fails alone; those
after it count as innocent. If none fails alone, they only fail in combination, and the newest runs alone to its end.

`decide` is the only place where a verdict is reached. Ranks of a group have the same requests in the same order: they
need to agree on whether a step has failed, and then reach the same verdict independently.

A device error ends the rank as before. To be imported after `warm` has run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sglang.srt.managers.scheduler import NextBatchPlan, Scheduler

from enginepool.engines.sglang.faults import is_device_error
from enginepool.engines.sglang.rank import rebuild

log = logging.getLogger("prism.rank")

CLEAR = 3
"""Steps that a suspect must complete alone to be cleared: its prefill, a decode step, and the step that reads that
out."""


@dataclass(frozen=True, slots=True)
class Verdict:
    guilty: Any = None
    """The request to end."""
    suspects: tuple[Any, ...] = ()
    """The requests to run alone, in this order."""


def decide(took_part: Sequence[Any]) -> Verdict:
    """The verdict on the participants of a failed step, given in the order in which they began to run."""
    unfinished = [req for req in took_part if not req.finished()]
    if len(took_part) == 1:
        return Verdict(guilty=unfinished[0] if unfinished else None)
    return Verdict(suspects=tuple(reversed(unfinished)))


def adapt() -> None:
    """Patch SGLang. Once per process, before a Scheduler is constructed, since it keeps references to its handlers."""
    Scheduler.handle_generate_request = _ending_it(Scheduler.handle_generate_request)
    Scheduler.handle_embedding_request = _ending_it(Scheduler.handle_embedding_request)


def install(scheduler: Any) -> Quarantine:
    """Put a Scheduler under quarantine, before its first request."""
    return Quarantine(scheduler)


def _ending_it(handle: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """End a request that the Scheduler fails to accept, as it is the only participant."""

    def handle_or_end(scheduler: Any, request: Any) -> None:
        try:
            handle(scheduler, request)
        except Exception as error:
            if is_device_error(error):
                raise
            log.warning("a request could not be accepted and was ended", exc_info=True)
            scheduler.waiting_queue = [it for it in scheduler.waiting_queue if it.rid != request.rid]
            rebuild.end(scheduler, request)

    return handle_or_end


@dataclass(slots=True)
class Trial:
    """Suspects running alone, one after the other."""

    alone: Any
    """The suspect that runs now."""
    waiting: list[Any]
    """The suspects after it."""
    newest: Any
    """The suspect that runs alone to its end if none fails alone."""
    steps: int = 0
    """Steps that `alone` has completed."""
    to_the_end: bool = False
    """Whether `alone` runs until it finishes instead of until it is cleared."""


@dataclass(slots=True)
class Quarantine:
    """Wraps the four calls that make up a step of the Scheduler."""

    scheduler: Any
    trial: Trial | None = None
    _failed: list[Any] | None = None
    """Participants of a failed step, until the next step begins."""
    _queued: list[Any] = field(default_factory=list)
    """The queue from which the Scheduler chooses its next batch."""
    _held: list[Any] = field(default_factory=list)
    """Requests hidden from the Scheduler so that a suspect runs alone."""
    _sent: bool = False
    """Whether the step's tokens have been sent."""
    _plan: Callable[..., Any] = field(init=False)
    _run: Callable[..., Any] = field(init=False)
    _sample: Callable[..., Any] = field(init=False)
    _read_out: Callable[..., Any] = field(init=False)
    _sort: Callable[..., Any] = field(init=False)

    def __post_init__(self) -> None:
        scheduler = self.scheduler
        self._plan, scheduler.get_next_batch_to_run = scheduler.get_next_batch_to_run, self.plan
        self._run, scheduler.run_batch = scheduler.run_batch, self.run
        self._sample, scheduler.launch_batch_sample_if_needed = scheduler.launch_batch_sample_if_needed, self.sample
        self._read_out, scheduler.process_batch_result = scheduler.process_batch_result, self.read_out
        self._sort, scheduler.policy.calc_priority = scheduler.policy.calc_priority, self.sort
        streamer = scheduler.output_streamer
        streamer.send_to_detokenizer = _Noting(streamer.send_to_detokenizer, self)

    def note_sent(self) -> None:
        self._sent = True

    # the four parts of a step

    def plan(self, running_batch: Any, last_batch: Any) -> Any:
        scheduler = self.scheduler
        # Judged at the start of the next step: when the exception is caught, the Scheduler is still busy with the
        # failed one.
        if self._failed is not None:
            self._judge()
        elif self.trial is not None and self._is_clear(self.trial):
            self._go_on(self.trial)
        self._queued = []
        try:
            return self._plan(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
        except Exception as error:
            self._fail("composing a batch", error, self._chosen() or self._visible())
        finally:
            scheduler.waiting_queue += self._held
            self._held = []
        self._judge()
        return NextBatchPlan(batch_to_run=None, running_batch=scheduler.running_batch)

    def sort(self, waiting_queue: list[Any], running_batch: Any) -> Any:
        """Called when the Scheduler begins to choose from its queue."""
        if self.trial is not None:
            self._held = [req for req in waiting_queue if req is not self.trial.alone]
            waiting_queue[:] = [req for req in waiting_queue if req is self.trial.alone]
        self._queued = list(waiting_queue)
        return self._sort(waiting_queue, running_batch)

    def run(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._run(batch, *args, **kwargs)
        except Exception as error:
            self._fail("running a batch", error, batch.reqs)

    def sample(self, result: Any, batch: Any) -> Any:
        if self._failed is not None:
            return None
        try:
            return self._sample(result, batch)
        except Exception as error:
            self._fail("sampling", error, batch.reqs)

    def read_out(self, batch: Any, result: Any) -> None:
        if self._failed is not None:  # all requests are prefilled again, so results in flight are dropped
            return
        marks = [rebuild.mark(req) for req in batch.reqs]
        self._sent = False
        try:
            self._read_out(batch, result)
        except Exception as error:
            # Tokens that were sent must be kept: the client has them. Otherwise the requests return to their old state.
            if not self._sent:
                for req, mark in zip(batch.reqs, marks, strict=True):
                    rebuild.set_back(req, mark)
            self._fail("reading out a batch", error, batch.reqs)
        else:
            if self.trial is not None and self.scheduler.chunked_req is None:
                self.trial.steps += 1

    # after a failure

    def _fail(self, doing: str, error: Exception, took_part: Sequence[Any]) -> None:
        if is_device_error(error) or not took_part:
            raise error
        log.warning("error while %s of %d requests", doing, len(took_part), exc_info=error)
        self._failed = list(took_part)

    def _judge(self) -> None:
        took_part, self._failed = self._failed or [], None
        verdict = decide(took_part)
        everybody = dict.fromkeys([*rebuild.live(self.scheduler), *(it for it in took_part if not it.finished())])
        self.trial = None
        if verdict.guilty is not None:
            del everybody[verdict.guilty]
            rebuild.end(self.scheduler, verdict.guilty)
        elif verdict.suspects:
            first, *others = verdict.suspects
            self.trial = Trial(first, others, first)
        rebuild.start_over(self.scheduler, everybody)

    def _chosen(self) -> list[Any]:
        """The requests chosen for the batch being composed: those that have left the queue; empty if none has yet."""
        waiting, piece = set(self.scheduler.waiting_queue), self.scheduler.chunked_req
        chosen = [req for req in self._queued if req not in waiting]
        return [piece, *chosen] if chosen and piece is not None and piece not in chosen else chosen

    def _visible(self) -> list[Any]:
        return [self.trial.alone] if self.trial is not None else rebuild.live(self.scheduler)

    # trials

    def _is_clear(self, trial: Trial) -> bool:
        gone = trial.alone not in rebuild.live(self.scheduler)
        return gone or (trial.steps >= CLEAR and not trial.to_the_end)

    def _go_on(self, trial: Trial) -> None:
        """Continue the trial with the next suspect, or end it."""
        here = rebuild.live(self.scheduler)
        left = [req for req in trial.waiting if req in here]
        if left:
            self.trial = Trial(left[0], left[1:], trial.newest)
        elif trial.newest in here and not trial.to_the_end:
            self.trial = Trial(trial.newest, [], trial.newest, to_the_end=True)
        else:
            self.trial = None
        rebuild.start_over(self.scheduler, here)


class _Noting:
    """Wraps a socket's sender to note when something was sent."""

    def __init__(self, sender: Any, quarantine: Quarantine) -> None:
        self._sender, self._quarantine = sender, quarantine

    def send_output(self, *args: Any) -> None:
        self._sender.send_output(*args)
        self._quarantine.note_sent()
