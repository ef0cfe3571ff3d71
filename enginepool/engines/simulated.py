"""An engine without a model: a timing model answers, so that only the gateway is under load.

Prefill takes `ttft` seconds. Decode steps take `tpot` seconds each and yield one token for every running request, as in
continuous batching. With `tpot` 0, a request is answered as soon as it is prefilled.

The engine can also pretend to use device memory: `held_*` bytes depending on its state, and `kv_per_token` bytes per
token of its requests. A lower KV limit takes effect after `limit_delay` seconds, provided that the requests fit then.

A request whose body contains the text `faulty` kills the worker after its prefill, the way a GPU fault would.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from dataclasses import dataclass, field

from config.errors import RequestError
from enginepool.engine import Emit, EngineLoad
from enginepool.messages import (
    Chunk,
    Counted,
    Done,
    Head,
    KvLimitApplied,
    Manifest,
    ModelSpec,
    Reply,
    SegmentRef,
    Submit,
)
from enginepool.openai.answers import EVENT_STREAM, JSON, Choice, OpenAIAnswer, Usage, answer_to
from enginepool.openai.errors import error_body
from enginepool.openai.requests import ChatRequest, GenerationRequest, parse
from enginepool.process import DEVICE_FAULT_EXIT

BYTES_PER_TOKEN = 4
DEFAULT_TOKENS = 16
MAX_LAG = 0.1
"""Maximum seconds of decode steps to catch up with after a late one."""
TEXT = "the gate opens and a warm model answers while the others sleep in host memory"
WORDS = tuple(f" {word}" for word in TEXT.split())


@dataclass(slots=True)
class _Sequence:
    submit: Submit
    stream: bool
    answer: OpenAIAnswer
    choices: int
    prompt_tokens: int
    max_tokens: int
    produced: int = 0
    prefill: asyncio.TimerHandle | None = None

    @property
    def finished(self) -> bool:
        return self.produced >= self.max_tokens


@dataclass(order=True, slots=True)
class _Waiting:
    deadline: float
    request: int
    sequence: _Sequence = field(compare=False)


class SimulatedEngine:
    name = "simulated"
    copy_seconds = 0.0

    def __init__(
        self,
        emit: Emit,
        *,
        max_running: int,
        ttft: float = 0.0,
        tpot: float = 0.02,
        activation: float = 0.05,
        held_blank: int = 0,
        held_active: int = 0,
        held_parked: int = 0,
        kv_per_token: int = 0,
        limit_delay: float = 0.0,
        faulty: str = "",
    ) -> None:
        self._emit = emit
        self._max_running = max_running
        self._ttft = ttft
        self._tpot = tpot
        self._activation = activation
        self._loop = asyncio.get_running_loop()
        self._held_blank = held_blank
        self._held_active = held_active
        self._held_parked = held_parked
        self._kv_per_token = kv_per_token
        self._limit_delay = limit_delay
        self._faulty = faulty.encode()
        self._kv_limit = 0
        self._kv_revision = 0
        self._lowering: asyncio.TimerHandle | None = None
        self._model: str = ""
        self.held = held_blank
        self._sequences: dict[int, _Sequence] = {}
        self._waiting: list[_Waiting] = []
        self._decoding: dict[int, _Sequence] = {}
        self._step_timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._held = False
        self.load = EngineLoad()

    # the model

    async def start(self) -> None:
        """There is nothing to wait for."""

    async def activate(
        self,
        model: ModelSpec,
        manifest: Manifest | None,
        segment: SegmentRef | None,
        verify: bool,
        *,
        kv_limit: int = 0,
        kv_revision: int = 0,
    ) -> dict[str, float]:
        await asyncio.sleep(self._activation)
        self._model = model.name
        self._kv_limit, self._kv_revision = kv_limit, kv_revision
        self.held = self._held_active
        return {"simulated": self._activation}

    async def park(self) -> str:
        self.held = self._held_parked
        return self._model

    async def blank(self) -> dict[str, float]:
        self._model = ""
        self.held = self._held_blank
        return {}

    def offer(self, model: ModelSpec, segment: SegmentRef) -> None:
        """There is nothing to prepare."""

    def withdraw(self, model: str) -> None:
        """There is nothing to release."""

    def set_kv_limit(self, revision: int, nbytes: int) -> None:
        lower = nbytes < self._kv_limit
        self._kv_limit, self._kv_revision = nbytes, revision
        if self._lowering is not None:
            self._lowering.cancel()
        self._lowering = self._loop.call_later(self._limit_delay if lower else 0.0, self._answer_limit)

    def _answer_limit(self) -> None:
        self._lowering = None
        mapped = self.load.kv_bytes
        self._emit(KvLimitApplied(self._kv_revision, mapped, mapped <= self._kv_limit))
        self._admit()

    # requests

    def submit(self, request: Submit) -> None:
        try:
            parsed = parse(request.path, request.body)
        except RequestError as error:
            self._emit(Reply(request.request, error.status, JSON, error_body(error), 0, 0))
            return
        sequence = _new_sequence(request, parsed)
        self._sequences[request.request] = sequence
        self._emit(Counted(request.request, sequence.prompt_tokens))
        heapq.heappush(self._waiting, _Waiting(request.deadline, request.request, sequence))
        self._admit()

    def abort(self, request: int) -> None:
        sequence = self._sequences.get(request)
        if sequence is not None:
            self._drop(sequence)
            self._admit()

    def hold(self, paused: bool) -> None:
        self._held = paused
        if not paused:
            self._schedule_step()

    async def close(self) -> None:
        for sequence in list(self._sequences.values()):
            self._drop(sequence)
        if self._lowering is not None:
            self._lowering.cancel()

    def _admit(self) -> None:
        """Start prefills while there is room, earliest deadline first."""
        while self._waiting and self.load.running < self._max_running and self._kv_fits(self._waiting[0].sequence):
            sequence = heapq.heappop(self._waiting).sequence
            if sequence.submit.request in self._sequences:
                self.load.running += 1
                self.load.kv_bytes += self._kv_of(sequence)
                self._prefill(sequence)
        self.load.waiting = len(self._sequences) - self.load.running

    def _kv_of(self, sequence: _Sequence) -> int:
        """Bytes of KV cache that a request needs at its end, reserved from the start."""
        return self._kv_per_token * (sequence.prompt_tokens + sequence.max_tokens * sequence.choices)

    def _kv_fits(self, sequence: _Sequence) -> bool:
        """Whether a request may start. A request alone always may, since it could wait for nobody to finish."""
        alone, needed = self.load.running == 0, self.load.kv_bytes + self._kv_of(sequence)
        return alone or self._kv_limit == 0 or needed <= self._kv_limit

    def _prefill(self, sequence: _Sequence) -> None:
        if self._ttft > 0:
            sequence.prefill = self._loop.call_later(self._ttft, self._begin, sequence)
        else:
            sequence.prefill = self._loop.call_soon(self._begin, sequence)  # type: ignore[assignment]

    def _begin(self, sequence: _Sequence) -> None:
        """Finish the prefill with the first token."""
        if self._faulty and self._faulty in sequence.submit.body:
            os._exit(DEVICE_FAULT_EXIT)
        self.load.prompt_tokens += sequence.prompt_tokens
        request = sequence.submit.request
        if sequence.stream:
            self._emit(Head(request, 200, EVENT_STREAM))
            opening = b"".join(map(sequence.answer.begin, range(sequence.choices)))
            if opening:
                self._emit(Chunk(request, opening))
        if self._tpot == 0:
            while not sequence.finished:
                self._decode(sequence)
            self._finish(sequence)
            self._admit()
            return
        self._decode(sequence)
        self._decoding[request] = sequence
        self._schedule_step()

    def _schedule_step(self) -> None:
        if self._step_timer is None and self._decoding and not self._held:
            self._due = self._loop.time() + self._tpot
            self._step_timer = self._loop.call_at(self._due, self._step)

    def _step(self) -> None:
        """Decode one token of every running request; the next step is due `tpot` after this one was due, even if it ran
        late."""
        self._step_timer = None
        for sequence in list(self._decoding.values()):
            if sequence.finished:
                self._finish(sequence)
            else:
                self._decode(sequence)
        self._admit()
        if self._decoding and not self._held:
            self._due = max(self._due, self._loop.time() - MAX_LAG) + self._tpot
            self._step_timer = self._loop.call_at(self._due, self._step)

    def _decode(self, sequence: _Sequence) -> None:
        word = WORDS[sequence.produced % len(WORDS)]
        sequence.produced += 1
        self.load.output_tokens += sequence.choices
        if sequence.stream:
            for index in range(sequence.choices):
                self._emit(Chunk(sequence.submit.request, sequence.answer.piece(index, word)))

    def _finish(self, sequence: _Sequence) -> None:
        request = sequence.submit.request
        output_tokens = sequence.produced * sequence.choices
        usage = Usage(sequence.prompt_tokens, output_tokens)
        if sequence.stream:
            endings = [sequence.answer.finish(index, "length") for index in range(sequence.choices)]
            self._emit(Chunk(request, b"".join(endings) + sequence.answer.end(usage)))
            self._emit(Done(request, sequence.prompt_tokens, output_tokens, ""))
        else:
            text = "".join(WORDS[position % len(WORDS)] for position in range(sequence.produced))
            body = sequence.answer.whole([Choice(index, text, "length") for index in range(sequence.choices)], usage)
            self._emit(Reply(request, 200, JSON, body, sequence.prompt_tokens, output_tokens))
        self._drop(sequence)

    def _drop(self, sequence: _Sequence) -> None:
        request = sequence.submit.request
        del self._sequences[request]
        self._decoding.pop(request, None)
        if sequence.prefill is not None:
            sequence.prefill.cancel()
            self.load.running -= 1
            self.load.kv_bytes -= self._kv_of(sequence)


def _new_sequence(submit: Submit, parsed: GenerationRequest) -> _Sequence:
    prompts = 1 if isinstance(parsed, ChatRequest) else len(parsed.prompts)
    return _Sequence(
        submit=submit,
        stream=parsed.stream,
        answer=answer_to(parsed),
        choices=parsed.sampling.n * prompts,
        prompt_tokens=_count_tokens(parsed),
        max_tokens=parsed.sampling.max_tokens or DEFAULT_TOKENS,
    )


def _count_tokens(parsed: GenerationRequest) -> int:
    if isinstance(parsed, ChatRequest):
        texts: list[str | tuple[int, ...]] = [message.content for message in parsed.messages]
    else:
        texts = list(parsed.prompts)
    return sum(1 + len(text) // BYTES_PER_TOKEN if isinstance(text, str) else len(text) for text in texts)
