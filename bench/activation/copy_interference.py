"""Measures how copying one model's weights slows down another model decoding on the same device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from bench.activation.rounds import REST, Prompts
from bench.subjects.gateway_under_test import GatewayUnderTest
from simulator.errors import StudyError

QUIET = 4.0
"""Seconds of undisturbed streaming before the first copy, for comparison."""
TOKENS = 512
"""Tokens per answer; the next one begins when it ends."""


class Span(NamedTuple):
    """A time span on `time.perf_counter`."""

    begin: float
    end: float


class Gap(NamedTuple):
    """The gap between two tokens of one answer."""

    at: float
    """Time of the second token, on `time.perf_counter`."""
    seconds: float


async def beside_copies(
    subject: GatewayUnderTest, prompts: Prompts, copied: str, neighbour: str, times: int
) -> dict[str, Any]:
    """Stream from the active model `neighbour` while `copied` is activated and evicted `times` times.

    Raises: StudyError.
    """
    copies = []
    async with _streaming(subject, prompts, neighbour) as gaps:
        began = time.perf_counter()
        await asyncio.sleep(QUIET)
        quiet = Span(began, time.perf_counter())
        for _ in range(times):
            copies.append(await _copy(subject, copied))
            await asyncio.sleep(REST)
            await subject.command("evict", model=copied)
            await subject.settled()
            await asyncio.sleep(REST)
    return {"model": neighbour, "copied": copied, "copies": times, **figures(gaps, quiet, copies)}


def figures(gaps: Sequence[Gap], quiet: Span, copies: Sequence[Span]) -> dict[str, float]:
    """Mean time per token and longest gap, in seconds, without and during copies.

    A gap counts as during a copy if they overlap at all, since a token delayed by a copy comes after it.

    Raises:
        StudyError: no token came during the quiet time, or none during a copy.
    """
    alone = [gap.seconds for gap in gaps if quiet.begin <= gap.at - gap.seconds and gap.at <= quiet.end]
    beside = [
        gap.seconds for gap in gaps if any(gap.at >= it.begin and gap.at - gap.seconds <= it.end for it in copies)
    ]
    if not alone or not beside:
        raise StudyError("the neighbour's stream had no tokens to compare")
    return {
        "tpot_s": sum(alone) / len(alone),
        "longest_gap_s": max(alone),
        "tpot_beside_s": sum(beside) / len(beside),
        "longest_gap_beside_s": max(beside),
    }


async def _copy(subject: GatewayUnderTest, model: str) -> Span:
    """Activate `model`; returns the span from the command to the end of the copy, which may end after the command."""
    began = time.perf_counter()
    await subject.command("activate", model=model)
    active = time.perf_counter()
    worker = await subject.active_worker(model)
    return Span(began, max(active, began + (worker.activation_copy_s or 0.0)))


@asynccontextmanager
async def _streaming(subject: GatewayUnderTest, prompts: Prompts, model: str) -> AsyncIterator[list[Gap]]:
    """Stream answers one after another, collecting the gaps between their tokens. Raises: StudyError if one fails."""
    gaps: list[Gap] = []
    over = False

    async def stream() -> None:
        while not over:
            prompt = prompts.write(model)
            began = time.perf_counter()
            outcome = await subject.ask(model, prompt, TOKENS)
            assert outcome.first_token is not None
            at = began + outcome.first_token
            for seconds in outcome.gaps:
                at += seconds
                gaps.append(Gap(at, seconds))

    streaming = asyncio.create_task(stream())
    try:
        yield gaps
        over = True
        await streaming
    finally:
        streaming.cancel()
