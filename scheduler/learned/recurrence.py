"""Whether a model's demand comes back at regular times, such as a job's that runs every ten minutes, and when next."""

from __future__ import annotations

from dataclasses import dataclass

QUIET = 30.0
"""Seconds without a request after which the next one begins a new spell of demand."""
ALIKE = 0.1
"""Share by which two periods may differ and still be the same."""
ENOUGH = 2
"""Periods that must have been alike, one after the other, for another one to be expected."""
AHEAD = 20.0
"""Seconds before the expected beginning from which the model is due; and at least so many after it."""


@dataclass(slots=True)
class Recurrence:
    """All times are seconds on the scheduler's clock."""

    period: float = 0.0
    """From the beginning of one spell to that of the next, in the mean of those that were alike."""
    alike: int = 0
    """How many they are."""
    _began: float | None = None
    _last: float = 0.0

    def arrived(self, now: float) -> None:
        """A request has come."""
        if self._began is None:
            self._began = now
        elif now - self._last >= QUIET:
            self._learn(now - self._began)
            self._began = now
        self._last = now

    def expected_in(self, now: float) -> float | None:
        """Seconds until the next spell is thought to begin, if the model is due: negative when it is late.

        None while a spell lasts, or nothing is expected around now.
        """
        if self.alike < ENOUGH or self._began is None or now - self._last < QUIET:
            return None
        ahead = self._began + self.period - now
        return ahead if -max(AHEAD, ALIKE * self.period) <= ahead <= AHEAD else None

    def _learn(self, period: float) -> None:
        if self.alike and abs(period - self.period) <= ALIKE * self.period:
            self.alike += 1
            self.period += (period - self.period) / min(self.alike, 4)
        else:
            self.alike, self.period = 1, period
