"""The processes that a test has started, apart from those that are there for several tests."""

from __future__ import annotations

import psutil
import pytest

_others: set[psutil.Process] = set()


@pytest.fixture
def count_children() -> None:
    """What `own_children` leaves out is what is there now."""
    _others.clear()
    _others.update(psutil.Process().children())


def own_children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child not in _others]
