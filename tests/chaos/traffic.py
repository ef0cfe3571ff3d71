"""The load: greedy requests whose answers are known, from clients that ask again as soon as they have one.

Every request ends exactly once: with its full and right answer, with an error event where it had bytes already, or with
a refusal. Whether it may end in one of the latter ways is decided by what has happened (`run.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import aiohttp

from gateway.routing import WORKER_HEADER

CLIENTS = 5
PATIENCE = 240.0
"""Seconds for an answer; then it is lost."""
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPTS = ("Once upon a time", "The quick brown fox")
LENGTHS = (3, 96)
"""Tokens of an answer: some are over at once, some are likely to be hit."""
DONE = "[DONE]"
MOST = 800
"""Characters of what was wrong with an answer."""

Verdict = Literal["right", "wrong", "ended", "refused", "lost"]
"""`ended`: a stream, by an error event."""


class Question(NamedTuple):
    model: str
    path: str
    prompt: str
    max_tokens: int

    def body(self, number: int, *, stream: bool) -> bytes:
        """`number` makes it another body than all others, as those of strangers are."""
        asked: dict[str, Any] = {"prompt": self.prompt}
        if self.path == CHAT:
            asked = {"messages": [{"role": "user", "content": self.prompt}]}
        asked |= {"model": self.model, "max_tokens": self.max_tokens, "temperature": 0, "ignore_eos": True}
        return json.dumps({**asked, "stream": stream, "user": f"chaos-{number}"}).encode()


@dataclass(frozen=True)
class Outcome:
    number: int
    question: Question
    verdict: Verdict
    detail: str = ""
    worker: int | None = None
    """That began to answer."""

    def __str__(self) -> str:
        said = f"{self.verdict}: request {self.number}, {self.question}, worker {self.worker}"
        return f"{said}: {self.detail[:MOST]}" if self.detail else said


def questions(models: Iterable[str]) -> list[Question]:
    """A model's are beside each other."""
    return [Question(*it) for it in itertools.product(models, (COMPLETIONS, CHAT), PROMPTS, LENGTHS)]


class Traffic:
    """Of one gateway. What has become of requests is given out once, by `take`."""

    def __init__(self, client: aiohttp.ClientSession, answers: Mapping[Question, str], seed: str) -> None:
        self._client = client
        self._answers = answers
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._open: set[int] = set()
        self._outcomes: list[Outcome] = []
        self._changed = asyncio.Event()
        self._over = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """In the end nobody asks any more, and what runs ends."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(CLIENTS):
                clients.create_task(self._keep_asking())
            try:
                yield
            finally:
                self._over = True

    def take(self) -> list[Outcome]:
        taken, self._outcomes = self._outcomes, []
        return taken

    def any_question(self, chance: random.Random) -> Question:
        return chance.choice(list(self._answers))

    async def settle(self) -> None:
        """Wait until all that is asked by now has ended."""
        before = set(self._open)
        await self._until(lambda: not before & self._open)

    async def right_answers(self, count: int, models: Iterable[str] = ()) -> None:
        """Wait for so many to requests that begin from now on, and for one of each of these models."""
        first, known = next(self._numbers), len(self._outcomes)

        def holds() -> bool:
            right = [it for it in self._outcomes[known:] if it.number > first and it.verdict == "right"]
            return len(right) >= count and Counter(it.question.model for it in right).keys() >= set(models)

        await self._until(holds)

    async def ask_beside(self, model: str, chance: random.Random) -> None:
        """One request more, of a client that asks nothing else."""
        await self._ask(chance.choice([it for it in self._answers if it.model == model]), stream=True)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    async def _keep_asking(self) -> None:
        while not self._over:
            await self._ask(self.any_question(self._chance), stream=self._chance.random() < 0.6)

    async def _ask(self, question: Question, *, stream: bool) -> None:
        number = next(self._numbers)
        self._open.add(number)
        self._outcomes.append(await ask(self._client, number, question, self._answers, stream=stream))
        self._open.discard(number)
        self._changed.set()


async def ask(
    client: aiohttp.ClientSession, number: int, question: Question, answers: Mapping[Question, str], *, stream: bool
) -> Outcome:
    worker: int | None = None
    began = time.monotonic()
    try:
        body = question.body(number, stream=stream)
        async with asyncio.timeout(PATIENCE), client.post(question.path, data=body) as response:
            worker = int(response.headers[WORKER_HEADER]) if WORKER_HEADER in response.headers else None
            data = await response.read()
    except (TimeoutError, aiohttp.ClientError, ConnectionError) as error:
        return Outcome(number, question, "lost", f"{error!r} after {time.monotonic() - began:.1f} s", worker)
    judge = _judge_stream if stream and response.status == 200 else _judge_whole
    try:
        verdict, detail = judge(question, answers[question], response.status, data)
    except (LookupError, ValueError, TypeError) as error:
        verdict, detail = "wrong", f"{error!r}: {data!r}"
    return Outcome(number, question, verdict, detail, worker)


async def answers_of(client: aiohttp.ClientSession, asked: Iterable[Question]) -> dict[Question, str]:
    """What is said to each with nobody beside it."""
    answers = {}
    for question in asked:
        async with client.post(question.path, data=question.body(0, stream=False)) as response:
            data = await response.read()
            assert response.status == 200, f"{question}: {response.status} {data!r}"
        answers[question] = _text(question, json.loads(data))
    return answers


def _judge_whole(question: Question, answer: str, status: int, data: bytes) -> tuple[Verdict, str]:
    if status == 503:
        return "refused", data.decode()
    if status != 200:
        return "wrong", f"{status} {data!r}"
    said = _text(question, json.loads(data))
    return ("right", "") if said == answer else ("wrong", f"{said!r}, and not {answer!r}")


def _judge_stream(question: Question, answer: str, status: int, data: bytes) -> tuple[Verdict, str]:
    events = [it.removeprefix("data: ") for it in data.decode().split("\n\n")[:-1]]
    if not events:
        return "wrong", "a stream without events"
    last = events.pop()
    whole = last == DONE and DONE not in events
    parsed = [json.loads(it) for it in events]
    said = "".join(_text(question, it) for it in parsed if it["choices"])
    if whole and said == answer and len({it["id"] for it in parsed}) == 1:
        return "right", ""
    if not whole and '"error"' in last and answer.startswith(said):
        return "ended", last
    return "wrong", f"{data!r}, and not {answer!r}"


def _text(question: Question, said: Any) -> Any:
    choice = said["choices"][0]
    if question.path == CHAT:
        message = choice["delta"] if "delta" in choice else choice["message"]
        return message.get("content") or ""
    return choice["text"] or ""
