"""One request in the engine, and the choices that it is answered with."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import DynamicCache

from enginepool.engines.transformers.replies import Answering
from enginepool.engines.transformers.sampling import Sampler
from enginepool.engines.transformers.skeleton import Skeleton
from enginepool.engines.transformers.text import Detokenizer, StopFilter
from enginepool.messages import Submit
from enginepool.openai.answers import FinishReason, Usage
from enginepool.openai.requests import GenerationRequest


class Sequence:
    """One choice while it is decoded. `last` is the newest token, which `cache` does not hold yet."""

    def __init__(
        self, index: int, limit: int, request: GenerationRequest, model: Skeleton, cache: DynamicCache
    ) -> None:
        self.index = index
        self.cache = cache
        self.sampler = Sampler(request.sampling, index)
        self.last = -1
        self._left = limit
        self._eos = frozenset[int]() if request.sampling.ignore_eos else model.eos
        self._detokenizer = Detokenizer(model.tokenizer)
        self._stop = StopFilter(request.sampling.stop)

    def push(self, token: int) -> tuple[str, FinishReason | None]:
        """Take a token; the text that may be sent now, and why the choice ends if it does."""
        self.last = token
        self._left -= 1
        if token in self._eos:
            return self._rest(), "stop"
        text = self._stop.push(self._detokenizer.push(token))
        if self._stop.stopped:
            return text, "stop"
        if self._left == 0:
            text += self._rest()
            return text, "stop" if self._stop.stopped else "length"
        return text, None

    def _rest(self) -> str:
        return self._stop.push(self._detokenizer.finish()) + self._stop.finish()


@dataclass(slots=True, eq=False)
class Job:
    submit: Submit
    request: GenerationRequest
    prompts: list[list[int]]
    answering: Answering
    limits: list[int] = field(default_factory=list)
    """Most tokens of each choice, by prompt; set at admission."""
    kv_bytes: int = 0
    """Promised at admission."""
    prefilled: int = 0
    """Prompts whose choices have begun."""
    sequences: list[Sequence] = field(default_factory=list)
    """The choices being decoded."""
    output_tokens: int = 0

    @property
    def id(self) -> int:
        return self.submit.request

    @property
    def choices(self) -> int:
        return len(self.prompts) * self.request.sampling.n

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def usage(self) -> Usage:
        return Usage(self.prompt_tokens, self.output_tokens)

    @property
    def finished(self) -> bool:
        return self.prefilled == len(self.prompts) and not self.sequences

    def push(self, sequence: Sequence, token: int) -> None:
        """Give a choice its next token, and the text to the client."""
        self.output_tokens += 1
        text, reason = sequence.push(token)
        if text:
            self.answering.text(sequence.index, text)
        if reason is not None:
            self.answering.finish(sequence.index, reason)
            self.sequences.remove(sequence)
