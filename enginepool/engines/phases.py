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
        """These came next, in another process; what is left until the next `end` is that phase's. They may have begun
        before this process heard of it: then the last phase was as much shorter.
        """
        end = self._last + sum(others.values())
        early = max(0.0, end - time.perf_counter())
        if self.seconds:
            self.seconds[next(reversed(self.seconds))] -= early
        self.seconds.update(others)
        self._last = end - early
