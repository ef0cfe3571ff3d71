"""Searches for the limit up to which a condition holds."""

from __future__ import annotations

import math
from collections.abc import Callable


def highest(
    holds: Callable[[float], bool], *, start: float, precision: float, least: float, most: float
) -> float | None:
    """The highest value that holds, to a factor of `precision`, assuming that all lower ones hold too; None if none
    does down to `least`.

    Brackets the limit from `start` by factors of 2, then bisects.
    """
    if holds(start):
        low, high = start, 2 * start
        while holds(high):
            low, high = high, 2 * high
            if low >= most:
                return low
    else:
        low, high = start / 2, start
        while low >= least and not holds(low):
            low, high = low / 2, low
        if low < least:
            return None
    while high / low > precision:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def fewest(holds: Callable[[int], bool], *, start: int, most: int) -> int | None:
    """The lowest number from 1 to `most` that holds, assuming that all higher ones hold too; None if none does."""
    low, high = 0, start
    while not holds(high):
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
