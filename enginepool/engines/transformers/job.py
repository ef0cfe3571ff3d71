"""One request in the engine, and the choices generated for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import DynamicCache

from enginepool.engines.transformers.replies import Answering
from enginepool.engines.transformers.sampling import Sampler
from enginepool.engines.transformers.skeleton import TransformersSkeleton
from enginepool.engines.transformers.text import Detokenizer, StopFilter
from enginepool.messages import Submit
from enginepool.openai.answers import FinishReason, Usage
from enginepool.openai.requests import GenerationRequest


class Sequence:
    """One choice being decoded. `last` is the newest token, which is not in `cache` yet."""

    def __init__(
        self, index: int, limit: int, request: GenerationRequest, model: TransformersSkeleton, cache: DynamicCache
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
        """Add a token; returns the text that may be sent now, and the finish reason if the choice ends."""
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
class GenerationJob:
    submit: Submit
    request: GenerationRequest
    prompts: list[list[int]]
    answering: Answering
    limits: list[int] = field(default_factory=list)
    """Maximum tokens per choice, by prompt; set at admission."""
    kv_bytes: int = 0
    """Bytes of KV cache reserved at admission."""
    prefilled: int = 0
    """Number of prompts that have been prefilled."""
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
        """Add a token to a choice and pass on the resulting text."""
        self.output_tokens += 1
        text, reason = sequence.push(token)
        if text:
            self.answering.text(sequence.index, text)
        if reason is not None:
            self.answering.finish(sequence.index, reason)
            self.sequences.remove(sequence)
