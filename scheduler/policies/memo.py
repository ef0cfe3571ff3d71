"""What one plan asks again and again. While it is made, only its own decisions change the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from scheduler.state import State

T = TypeVar("T")


class Memo:
    """Answers hold until a worker changes its phase, and for one plan: time and requests go on between two."""

    def __init__(self) -> None:
        self._changes = -1
        self._answers: dict[object, Any] = {}

    def forget(self) -> None:
        self._answers.clear()

    def of(self, state: State, question: object, answer: Callable[[], T]) -> T:
        if self._changes != state.roster.changes:
            self._changes = state.roster.changes
            self._answers.clear()
        if question not in self._answers:
            self._answers[question] = answer()
        found: T = self._answers[question]
        return found
