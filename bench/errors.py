"""Errors of measurements over HTTP."""

from __future__ import annotations

from simulator.errors import StudyError


class BadReply(StudyError):
    """A server sent bytes that are not HTTP/1.1, or an unexpected answer."""
