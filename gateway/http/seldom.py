"""A line of the log for many events of a kind: what a thousand clients cause is told once, with their number."""

from __future__ import annotations

import logging
import time

INTERVAL = 10.0
"""Seconds between two lines of one kind."""


class Seldom:
    def __init__(self, log: logging.Logger, text: str) -> None:
        """`text` has a %d for how many there were since the last line."""
        self._log = log
        self._text = text
        self._count = 0
        self._next = 0.0

    def note(self) -> None:
        """It has happened once more."""
        self._count += 1
        if (now := time.monotonic()) >= self._next:
            self._log.warning(self._text, self._count)
            self._count, self._next = 0, now + INTERVAL
