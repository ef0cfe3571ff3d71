"""How fast a server decodes once its answers have begun."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp

from bench.gateway_under_test import ask

BATCHES = (1, 32)
TRIES = 2
TOKENS = 256
"""Of each answer."""


async def decode_rates(client: aiohttp.ClientSession, url: str, model: str, prompts: Sequence[str]) -> dict[int, float]:
    """Tokens per second by number of streams at a time, of the best try. Raises: BenchError."""
    rates = {}
    for batch in BATCHES:
        asked = [prompts[index % len(prompts)] for index in range(batch)]
        rates[batch] = max([await _rate(client, url, model, asked) for _ in range(TRIES)])
    return rates


async def _rate(client: aiohttp.ClientSession, url: str, model: str, prompts: Sequence[str]) -> float:
    outcomes = await asyncio.gather(*(ask(client, url, model, prompt, TOKENS) for prompt in prompts))
    return sum(1 / outcome.tpot for outcome in outcomes if outcome.tpot)
