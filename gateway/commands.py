"""Operators' commands that wait for the scheduler to carry them out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from config.errors import OperatorError
from scheduler.actions import Answer
from scheduler.events import AnyEvent, OperatorGone


class Commands:
    def __init__(self, numbers: Iterator[int], feed: Callable[[AnyEvent], None]) -> None:
        self._numbers = numbers
        self._feed = feed
        self._waiting: dict[int, asyncio.Future[Answer]] = {}

    async def run(self, command: Callable[[int], AnyEvent]) -> str:
        """Feed the event of a command, which gets a number, and wait for its outcome, told as text.

        Raises:
            OperatorError: it failed; the text says why.
        """
        number = next(self._numbers)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._feed(command(number))
            answer = await future
        finally:
            del self._waiting[number]
            if not future.done() or future.cancelled():
                self._feed(OperatorGone(number))
        if not answer.ok:
            raise OperatorError(answer.text)
        return answer.text

    def answer(self, answer: Answer) -> None:
        """The scheduler has the outcome of one; it is dropped if nobody waits for it any more."""
        future = self._waiting.get(answer.command)
        if future is not None and not future.done():
            future.set_result(answer)

    def fail_all(self, reason: str) -> None:
        for number in self._waiting:
            self.answer(Answer(number, False, reason))
