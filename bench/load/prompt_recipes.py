"""Finds out, before a load test starts, how each model's server counts tokens and which parameters it accepts.

A model whose tokenizer is available takes one request; otherwise the server is asked what each word costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import aiohttp

from bench.load.client import chat_body, stream_chat
from bench.load.outcomes import RequestOutcome
from bench.load.prompts import VOCABULARY, ExactWriter, PromptWriter
from bench.load.tokens import CountEach
from bench.load.word_costs import OPENINGS, costs_of, questions
from bench.load.workload import Arrival
from simulator.errors import StudyError
from simulator.progress import say

AT_A_TIME = 16
"""Concurrent requests to a server."""
REFUSALS = ("http 400", "http 422")
"""How servers answer to a parameter they do not know."""


@dataclass(frozen=True)
class PromptRecipe:
    """How to write requests to a model with exact token counts."""

    writer: ExactWriter | PromptWriter
    ignore_eos: bool
    """Whether the server accepts the parameter, without which answers may end early."""

    def bodies(self, model: str, asked: Sequence[Arrival]) -> list[bytes]:
        """Request bodies for `asked`, which are all for `model`. Takes seconds per million tokens."""
        prompts = self.writer.write_each([arrival.prompt_tokens for arrival in asked])
        return [
            chat_body(model, prompt, arrival.output_tokens, ignore_eos=self.ignore_eos)
            for prompt, arrival in zip(prompts, asked, strict=True)
        ]


def stranger(seed: int, model: str) -> PromptRecipe:
    """The recipe for a model about which nothing is known, with estimated lengths."""
    return PromptRecipe(PromptWriter(f"{seed} {model}"), ignore_eos=False)


def by_tokenizer(seed: int, model: str, count_each: CountEach) -> PromptRecipe:
    """The recipe for a model with a known tokenizer, without asking its server."""
    return PromptRecipe(ExactWriter.counting(f"{seed} {model}", count_each), ignore_eos=False)


async def meet(
    client: aiohttp.ClientSession, url: str, models: Sequence[str], counters: Mapping[str, CountEach], seed: int,
    patience: float,
) -> dict[str, PromptRecipe]:  # fmt: skip
    """Find the recipes of all models, one after the other, so that models sharing a worker are not swapped repeatedly.
    `patience` is in seconds.

    A model that does not answer, or whose server does not report tokens, is reported on stderr and gets estimates.
    """
    met = {}
    for model in models:
        try:
            met[model] = await _Inquiry(client, url, model, patience).meet(counters.get(model), f"{seed} {model}")
        except StudyError as error:
            say(f"{model}: its prompts are not exact: {error}")
            known = counters.get(model)
            met[model] = stranger(seed, model) if known is None else by_tokenizer(seed, model, known)
    return met


def bodies_of(plan: Sequence[Arrival], met: Mapping[str, PromptRecipe]) -> list[bytes]:
    """The request bodies of the whole plan, in its order."""
    found: list[bytes] = [b""] * len(plan)
    for model, recipe in met.items():
        places = [at for at, arrival in enumerate(plan) if arrival.model == model]
        for at, body in zip(places, recipe.bodies(model, [plan[at] for at in places]), strict=True):
            found[at] = body
    return found


class _Inquiry:
    """Finds the recipe of one model."""

    def __init__(self, client: aiohttp.ClientSession, url: str, model: str, patience: float) -> None:
        self._client = client
        self._url = url
        self._model = model
        self._patience = patience
        self._ignore_eos = True
        self._turns = asyncio.Semaphore(AT_A_TIME)

    async def meet(self, known: CountEach | None, seed: str) -> PromptRecipe:
        """Raises: StudyError."""
        counted = await self._introduce()
        if known is not None:
            writer = ExactWriter.counting(seed, _shifted(known, counted - known([OPENINGS[0]])[0]))
        else:
            say(f"{self._model}: asking the server what words cost; a --tokenizer would avoid that")
            counts = await asyncio.gather(*map(self._count, questions(VOCABULARY)))
            writer = ExactWriter(seed, costs_of(VOCABULARY, counts))
        return PromptRecipe(writer, self._ignore_eos)

    async def _introduce(self) -> int:
        """Send the first request, which also shows whether the server accepts `ignore_eos`."""
        try:
            return await self._count(OPENINGS[0])
        except _Refused:
            self._ignore_eos = False
            return await self._count(OPENINGS[0])

    async def _count(self, text: str) -> int:
        """Tokens of a prompt as counted by the server. Raises: StudyError."""
        began = perf_counter()
        outcome = RequestOutcome(Arrival(0.0, self._model, 0, 1))
        body = chat_body(self._model, text, 1, ignore_eos=self._ignore_eos)
        async with self._turns:
            await stream_chat(self._client, self._url, body, outcome, lambda: perf_counter() - began, self._patience)
        if outcome.error in REFUSALS:
            raise _Refused(f"the server refuses a request ({outcome.error})")
        if outcome.error is not None:
            raise StudyError(f"a request failed ({outcome.error})")
        if outcome.prompt_tokens is None:
            raise StudyError("the server does not say how many tokens a prompt has")
        return outcome.prompt_tokens


class _Refused(StudyError):
    """A server does not accept a parameter."""


def _shifted(count_each: CountEach, by: int) -> CountEach:
    """A counter corrected by the tokens that the server adds beyond the folder's template."""
    if not by:
        return count_each
    return lambda texts: [count + by for count in count_each(texts)]
