"""Routes libraries' log messages through Prism's log, with adjusted levels, and each message only once."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

_NUMBER = re.compile(r"\d+(\.\d+)?")


def take_over(name: str, expected: Sequence[str] = ()) -> None:
    """Make the library's logger `name` write to Prism's log. To be called after importing the library.

    Messages that begin with one of `expected` report what Prism causes deliberately, and are logged as debug.
    """
    logger = logging.getLogger(name)
    logger.handlers.clear()
    logger.propagate = True
    logger.addFilter(_Once(tuple(expected)))


class _Once(logging.Filter):
    """Lets each message pass once; messages that differ only in numbers are the same."""

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
