"""Percentiles, computed the same way in all reports."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PERCENTILES = (50, 90, 95, 99)


def percentile(values: Sequence[float], rank: float) -> float | None:
    """The `rank`-th percentile (0 to 100) in the unit of `values`; None if there are no values."""
    return float(np.percentile(values, rank)) if len(values) else None


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and `PERCENTILES` by name, such as `p50`, in the unit of `values`."""
    found: dict[str, float | None] = {"mean": float(np.mean(values)) if len(values) else None}
    return found | {f"p{rank}": percentile(values, rank) for rank in PERCENTILES}
