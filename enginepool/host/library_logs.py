"""What libraries log goes through Prism's log, at the level that it has for its users, and each message once."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+(\.\d+)?")


def take_over(name: str, expected: Sequence[str] = ()) -> None:
    """Have the library's logger `name` write to Prism's log instead of its own, to be called once it is imported.

    A message that begins with one of `expected` says what Prism itself brings about: it is for debugging.
    """
    logger = logging.getLogger(name)
    logger.handlers.clear()
    logger.propagate = True
    logger.addFilter(_Once(tuple(expected)))


class _Once(logging.Filter):
    """Lets a message pass once, whatever numbers are in it."""

    def __init__(self, expected: tuple[str, ...]) -> None:
        super().__init__()
        self._expected = expected
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if text.startswith(self._expected):
            record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
            return logging.getLogger("prism").isEnabledFor(logging.DEBUG)
        kind = f"{record.levelname} {_NUMBER.sub('0', text)}"
        is_new = kind not in self._said
        self._said.add(kind)
        return is_new
