"""The engine's batch: each step prefills one prompt and decodes one token of every running choice.

Each choice has its own KV cache and runs separately, so other requests cannot change the result of a seed.
"""

from __future__ import annotations

import copy
import heapq
import logging
from collections.abc import Callable
from dataclasses import dataclass

from transformers import DynamicCache

from config.errors import RequestError
from enginepool.engine import EngineLoad, Output
from enginepool.engines.transformers.job import GenerationJob, Sequence
from enginepool.engines.transformers.kv import KvBudget
from enginepool.engines.transformers.prompts import Tokens, tokenize
from enginepool.engines.transformers.replies import StreamedAnswer, WholeAnswer, refuse
from enginepool.engines.transformers.skeleton import TransformersSkeleton
from enginepool.engines.transformers.slot import ModelSlot
from enginepool.messages import Counted, Submit
from enginepool.openai.answers import answer_to
from enginepool.openai.errors import server_error
from enginepool.openai.requests import GenerationRequest, output_limit, parse

log = logging.getLogger("prism.engine")

_FAILED = "The engine failed on this request."


@dataclass(frozen=True, slots=True)
class PreparedRequest:
    """A parsed request and its tokenized prompts."""

    request: GenerationRequest
    prompts: list[Tokens]


class Batch:
    """`send` collects outputs and `flush` delivers them; both are called on the engine's thread only."""

    def __init__(
        self, slot: ModelSlot, max_running: int, send: Callable[[Output], None], flush: Callable[[], None]
    ) -> None:
        self._slot = slot
        self._max_running = max_running
        self._send = send
        self._flush = flush
        self._jobs: dict[int, GenerationJob] = {}
        self._waiting: list[tuple[float, int, GenerationJob]] = []
        self._running: list[GenerationJob] = []
        self._budget = KvBudget()
        self.held = False
        self.load = EngineLoad()

    @property
    def idle(self) -> bool:
        """Whether a step would do nothing."""
        return self.held or not self._jobs

    # commands

    def prepare(self, submit: Submit) -> PreparedRequest | RequestError:
        """Parse and tokenize a request, or return why it is refused. May be called on any thread."""
        try:
            return self._prepare(submit)
        except RequestError as error:
            return error
        except Exception:
            log.exception("request %d failed", submit.request)
            return server_error(_FAILED)

    def add(self, submit: Submit, prepared: PreparedRequest | RequestError | None = None) -> None:
        """Queue a request or refuse it, preparing it first unless `prepared` is given."""
        prepared = self.prepare(submit) if prepared is None else prepared
        if isinstance(prepared, RequestError):
            refuse(submit.request, prepared, self._send)
        else:
            self._queue(submit, prepared)
        self._measure()

    def abort(self, request: int) -> None:
        job = self._jobs.get(request)
        if job is not None:
            self._drop(job)

    def set_kv_limit(self, revision: int, nbytes: int) -> None:
        self._budget.set_limit(revision, nbytes)
        self._measure()

    # steps

    def step(self) -> None:
        self._admit()
        decoding = [job for job in self._running if job.sequences]
        starting = next((job for job in self._running if job.prefilled < len(job.prompts)), None)
        if starting is not None:
            self._advance(starting, self._prefill)
            # The first token is sent before the other requests decode.
            self._flush()
        for job in decoding:
            if job.id in self._jobs:
                self._advance(job, self._decode)
        self._flush()

    def _prepare(self, submit: Submit) -> PreparedRequest:
        request = parse(submit.path, submit.body)
        model = self._model()
        prompts = tokenize(request, model.tokenizer, model.vocabulary, model.context)
        for prompt in prompts:
            output_limit(request, len(prompt), model.context)
        return PreparedRequest(request, prompts)

    def _queue(self, submit: Submit, prepared: PreparedRequest) -> None:
        request, prompts = prepared.request, prepared.prompts
        answering = StreamedAnswer if request.stream else WholeAnswer
        job = GenerationJob(submit, request, prompts, answering(submit.request, answer_to(request), self._send))
        self._send(Counted(job.id, job.prompt_tokens))
        self._jobs[job.id] = job
        heapq.heappush(self._waiting, (submit.deadline, job.id, job))

    def _model(self) -> TransformersSkeleton:
        model = self._slot.active
        if model is None:
            raise RequestError(503, "No model is active on this worker.", kind="server_error", code="not_active")
        return model

    def _admit(self) -> None:
        """Start requests in deadline order. The first one without room blocks the rest, so none is overtaken."""
        while self._waiting:
            job = self._waiting[0][2]
            if self._jobs.get(job.id) is job and not self._start(job):
                break
            heapq.heappop(self._waiting)
        self._measure()

    def _start(self, job: GenerationJob) -> bool:
        """Start or refuse a job; returns False if it has to wait."""
        try:
            self._size(job)
        except RequestError as error:
            job.answering.fail(error, job.usage)
            self._drop(job)
            return True
        if len(self._running) >= self._max_running or not self._budget.fits(job.kv_bytes):
            return False
        self._budget.take(job.kv_bytes)
        self._running.append(job)
        return True

    def _size(self, job: GenerationJob) -> None:
        """Set the job's maximum answer lengths and the KV cache they need. Raises: RequestError."""
        model = self._model()
        per_token = model.kv_bytes_per_token
        room = model.context
        if self._budget.limit and job.request.sampling.max_tokens is None:
            room = min(room, self._budget.limit // (per_token * job.choices))
        job.limits = [output_limit(job.request, len(prompt), room) for prompt in job.prompts]
        longest = sum(len(prompt) + limit for prompt, limit in zip(job.prompts, job.limits, strict=True))
        job.kv_bytes = longest * job.request.sampling.n * per_token
        if not self._budget.ever_fits(job.kv_bytes):
            message = f"The request may need {job.kv_bytes} bytes of KV cache; there are {self._budget.limit}."
            raise RequestError(400, message, code="context_length_exceeded", param="max_tokens")

    def _advance(self, job: GenerationJob, work: Callable[[GenerationJob], None]) -> None:
        """Run a job's part of a step; any error ends this job only."""
        try:
            work(job)
            if job.finished:
                job.answering.close(job.usage)
            else:
                job.answering.flush()
        except Exception:
            log.exception("request %d failed", job.id)
            job.answering.fail(server_error(_FAILED), job.usage)
            self._drop(job)
        else:
            if job.finished:
                self._drop(job)

    def _prefill(self, job: GenerationJob) -> None:
        """Prefill the next prompt once; its n choices continue from copies of the KV cache."""
        model = self._model()
        prompt, limit, n = job.prompts[job.prefilled], job.limits[job.prefilled], job.request.sampling.n
        cache = DynamicCache(config=model.config)
        logits = model.forward(prompt, cache)
        first = job.prefilled * n
        caches = [cache, *(copy.deepcopy(cache) for _ in range(n - 1))]
        begun = [Sequence(first + i, limit, job.request, model, own) for i, own in enumerate(caches)]
        job.sequences += begun
        job.prefilled += 1
        self.load.prompt_tokens += len(prompt)
        for sequence in begun:
            job.answering.begin(sequence.index)
            self._push(job, sequence, sequence.sampler.choose(logits))

    def _decode(self, job: GenerationJob) -> None:
        model = self._model()
        for sequence in list(job.sequences):
            logits = model.forward((sequence.last,), sequence.cache)
            self._push(job, sequence, sequence.sampler.choose(logits))

    def _push(self, job: GenerationJob, sequence: Sequence, token: int) -> None:
        self.load.output_tokens += 1
        job.push(sequence, token)

    def _drop(self, job: GenerationJob) -> None:
        del self._jobs[job.id]
        if job in self._running:
            self._running.remove(job)
            self._budget.give(job.kv_bytes)
        self._measure()

    def _measure(self) -> None:
        self.load.running = len(self._running)
        self.load.waiting = len(self._jobs) - len(self._running)
        self.load.kv_bytes = self._budget.held
        applied = self._budget.applied()
        if applied is not None:
            self._send(applied)
