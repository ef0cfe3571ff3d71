"""Shared by all charts: the matplotlib backend, a few colours, and saving a figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from simulator.errors import StudyError

ALL = "#222222"
GOOD = "#2a7f62"
BAD = "#c8553d"
LATE = "#e0a458"


def save(figure: Figure, path: Path) -> None:
    """Write a figure to `path` and close it. Raises: StudyError."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise StudyError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        plt.close(figure)
