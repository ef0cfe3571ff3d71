"""The best of many fixed placements: what `static` is given, so that it is not judged by a bad draw."""

from __future__ import annotations

from collections.abc import Callable

PLACEMENTS = 200
FINALISTS = 5
SCREENED_FOR = 30.0
"""Seconds of the trace on which all are tried; the finalists are tried on the whole."""
SCREENED_AT = 2.0
"""Times the rate, there: at one that most placements hold they would all look alike."""


def best_placement(screened: Callable[[int], float], whole: Callable[[int], float], number: int) -> int:
    """Of `number` placements the one with the highest value on the whole trace, among the best of a shortened one."""
    values = {seed: screened(seed) for seed in range(number)}
    finalists = sorted(values, key=lambda seed: (-values[seed], seed))[:FINALISTS]
    return max(finalists, key=lambda seed: (whole(seed), -seed))
