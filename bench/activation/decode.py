"""Measures TTFT and decode rate of a server whose model is active."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from statistics import median

import aiohttp

from bench.load.operating import ask

BATCHES = (1, 32)
TRIES = 2
TOKENS = 256
"""Tokens per answer."""
PROMPTS = (256, 2048)
"""Prompt lengths, in tokens, for which TTFT is measured."""
FIRST_TOKENS = 5
"""Measurements per length."""


async def decode_rates(client: aiohttp.ClientSession, url: str, model: str, prompts: Sequence[str]) -> dict[int, float]:
    """Best decode rate in tokens per second, by number of concurrent streams. Raises: StudyError."""
    rates = {}
    for batch in BATCHES:
        asked = [prompts[index % len(prompts)] for index in range(batch)]
        rates[batch] = max([await _rate(client, url, model, asked) for _ in range(TRIES)])
    return rates


async def _rate(client: aiohttp.ClientSession, url: str, model: str, prompts: Sequence[str]) -> float:
    outcomes = await asyncio.gather(*(ask(client, url, model, prompt, TOKENS) for prompt in prompts))
    return sum(1 / outcome.tpot for outcome in outcomes if outcome.tpot)


async def first_tokens(
    client: aiohttp.ClientSession, url: str, model: str, write: Callable[[str, int], str]
) -> dict[int, float]:
    """Median TTFT in seconds of single requests, by prompt length in tokens. Raises: StudyError."""
    found = {}
    for tokens in PROMPTS:
        outcomes = [await ask(client, url, model, write(model, tokens), 2) for _ in range(FIRST_TOKENS)]
        found[tokens] = median(outcome.ttft for outcome in outcomes if outcome.ttft is not None)
    return found
