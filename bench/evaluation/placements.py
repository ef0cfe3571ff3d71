"""Finds the best of many fixed placements for `static`, so that it is not judged by an unlucky one."""

from __future__ import annotations

from collections.abc import Callable

PLACEMENTS = 200
FINALISTS = 5
SCREENED_FOR = 30.0
"""Seconds of the trace on which all placements are tried; the finalists are tried on the whole trace."""
SCREENED_AT = 2.0
"""Multiple of the rate for screening: at a rate that most placements hold, they would be indistinguishable."""


def best_placement(screened: Callable[[int], float], whole: Callable[[int], float], number: int) -> int:
    """The placement, out of `number`, with the highest value on the whole trace among the best on a shortened one."""
    values = {seed: screened(seed) for seed in range(number)}
    finalists = sorted(values, key=lambda seed: (-values[seed], seed))[:FINALISTS]
    return max(finalists, key=lambda seed: (whole(seed), -seed))
