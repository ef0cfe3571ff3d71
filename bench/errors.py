"""What can go wrong in a measurement."""

from __future__ import annotations

from config.errors import PrismError


class BenchError(PrismError):
    """A measurement cannot be made, or what it would say is not to be trusted."""


class BadReply(BenchError):
    """A server sent bytes that are not HTTP/1.1, or not the answer that was asked for."""


class UsageError(BenchError):
    """A command line asks for what cannot be."""
