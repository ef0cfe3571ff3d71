"""Parses and formats durations and sizes. In code, both are in base units: seconds and bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction

# Fractions, so that 700ms becomes exactly the float 0.7 instead of an adjacent one.
_DURATIONS = {
    "us": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "m": Fraction(60),
    "min": Fraction(60),
    "h": Fraction(3600),
}
_SIZES = {
    "B": Fraction(1),
    "KB": Fraction(1000),
    **{f"{prefix}B": Fraction(1000**power) for power, prefix in enumerate("kMGT", start=1)},
    **{f"{prefix}iB": Fraction(1024**power) for power, prefix in enumerate("KMGT", start=1)},
}
_QUANTITY = re.compile(r"\s*([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?)\s*([A-Za-z]*)\s*", re.ASCII)

_DURATION_STEPS = (
    ("us", 1e-6, 1000.0),
    ("ms", 1e-3, 1000.0),
    ("s", 1.0, 60.0),
    ("min", 60.0, 60.0),
    ("h", 3600.0, math.inf),
)
_SIZE_STEPS = (("KiB", 2**10, 1024.0), ("MiB", 2**20, 1024.0), ("GiB", 2**30, 1024.0), ("TiB", 2**40, math.inf))


def parse_duration(written: object) -> float:
    """Parses `500ms`, `2s`, `1.5m` or `1h` into seconds; a bare number is in seconds.

    Raises:
        ValueError: it is not a finite duration.
    """
    return _finite(_parse(written, _DURATIONS))


def parse_size(written: object) -> int:
    """Parses `16GiB`, `512MiB` or `1GB` into bytes, rounded to whole bytes; a bare integer is in bytes.

    Raises:
        ValueError: it is not a size.
    """
    if isinstance(written, float) and not written.is_integer():
        raise ValueError(f"{written} is not a whole number of bytes")
    return round(_parse(written, _SIZES))


def format_duration(seconds: float) -> str:
    """Formats a duration such as `3.2 ms`, with one decimal, in the largest unit in which it is at least 1."""
    if seconds == 0:
        return "0.0 s"
    return _format(seconds, _DURATION_STEPS)


def format_size(nbytes: float) -> str:
    """Formats a size such as `16.0 GiB`; below 1 KiB in whole bytes."""
    if abs(nbytes) < 1024:
        return f"{nbytes:.0f} B"
    return _format(nbytes, _SIZE_STEPS)


def _parse(written: object, units: Mapping[str, Fraction]) -> float | Fraction:
    if isinstance(written, int | float) and not isinstance(written, bool):
        return written
    found = _QUANTITY.fullmatch(written) if isinstance(written, str) else None
    if found is None:
        raise ValueError(f"{written!r} is not a number with a unit")
    number, unit = found.groups()
    if unit and unit not in units:
        raise ValueError(f"{unit!r} is not one of the units {', '.join(units)}")
    return Fraction(number) * (units[unit] if unit else 1)


def _finite(value: float | Fraction) -> float:
    try:
        seconds = float(value)
    except OverflowError as error:
        raise ValueError("the duration is too large") from error
    if not math.isfinite(seconds):
        raise ValueError(f"{seconds} is not finite")
    return seconds


def _format(value: float, steps: tuple[tuple[str, float, float], ...]) -> str:
    unit, scale, _ = next((step for step in steps if round(abs(value) / step[1], 1) < step[2]), steps[-1])
    return f"{value / scale:.1f} {unit}"
