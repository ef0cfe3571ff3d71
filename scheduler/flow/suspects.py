"""What is known of requests that may have ended a worker, or made a GPU fail: what they asked, and if it was them."""

from __future__ import annotations

from collections.abc import Iterable

from scheduler.state.entities import Charge, Known, Request
from scheduler.state.state import State

MEMORY = 600.0
"""Seconds for which it is known what a suspect has asked."""
MOST_KNOWN = 4096
"""How many are known at most; then the oldest are forgotten."""


class Suspects:
    def __init__(self, state: State) -> None:
        self._known = state.known

    def suspect(self, requests: Iterable[Request], charge: Charge, now: float) -> None:
        """A worker, or the GPU, has ended under them."""
        for request in requests:
            request.charge = charge
            if request.body:
                self._known.pop(request.body, None)
                self._known[request.body] = Known(now + MEMORY)
        while len(self._known) > MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def knows(self, request: Request, now: float) -> bool:
        """Whether the same was asked before, and ended a worker, or may have."""
        known = self._known.get(request.body)
        if known is not None and known.until <= now:
            del self._known[request.body]
        return request.body in self._known

    def is_guilty(self, request: Request) -> bool:
        """Whether what a known request asks has ended a worker that served nothing else."""
        return self._known[request.body].guilty

    def convict(self, request: Request, now: float) -> None:
        if request.body:
            self._known[request.body] = Known(now + MEMORY, guilty=True)

    def acquit(self, request: Request) -> None:
        """It has its answer: it was not the one."""
        self._known.pop(request.body, None)
