"""What an activation took, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Phases:
    """`seconds` by phase, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    def took(self, others: Mapping[str, float]) -> None:
        """These came next, in another process; what is left until the next `end` is that phase's."""
        self.seconds.update(others)
        self._last += sum(others.values())
