"""Measures an activation phase by phase."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Phases:
    """Collects `seconds` by phase, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._last
        self._last = now

    def took(self, others: Mapping[str, float]) -> None:
        """Insert phases that another process measured; the time left until the next `end` belongs to that phase.

        The other process may have begun before this one recorded its last phase, which is then shortened accordingly.
        """
        end = self._last + sum(others.values())
        early = max(0.0, end - time.perf_counter())
        if self.seconds:
            self.seconds[next(reversed(self.seconds))] -= early
        self.seconds.update(others)
        self._last = end - early
