"""One model's waiting requests, earliest deadline first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator


class DeadlineQueue:
    """A heap that forgets removed entries when they come up. Every operation is O(log n) amortised."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._waiting: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: int) -> bool:
        return request in self._waiting

    def __iter__(self) -> Iterator[int]:
        """Requests in no particular order."""
        return iter(self._waiting)

    def push(self, request: int, deadline: float) -> None:
        self._waiting[request] = deadline
        heapq.heappush(self._heap, (deadline, request))

    def first_deadline(self) -> float | None:
        """The earliest deadline, or None when nothing waits."""
        self._drop_removed()
        return self._heap[0][0] if self._heap else None

    def first(self) -> int:
        """The request of the earliest deadline.

        Raises:
            IndexError: nothing waits.
        """
        self._drop_removed()
        return self._heap[0][1]

    def pop(self) -> int:
        """Remove and return the request of the earliest deadline.

        Raises:
            IndexError: nothing waits.
        """
        self._drop_removed()
        _, request = heapq.heappop(self._heap)
        del self._waiting[request]
        return request

    def remove(self, request: int) -> None:
        """Forget a request; one that does not wait is no error."""
        self._waiting.pop(request, None)
        if len(self._heap) > 2 * len(self._waiting) + 64:
            self._heap = [(deadline, waiting) for waiting, deadline in self._waiting.items()]
            heapq.heapify(self._heap)

    def _drop_removed(self) -> None:
        heap, waiting = self._heap, self._waiting
        while heap and waiting.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
