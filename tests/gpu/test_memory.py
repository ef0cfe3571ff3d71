"""Any order of activations under load fits into the GPU's memory: no request fails, and no worker dies of it."""

from __future__ import annotations

import random

import pytest

from tests.gpu.load import Load, loaded
from tests.gpu.settings import MODELS, evict
from tests.rig.serving import Prism

pytestmark = pytest.mark.gpu

SWAPS = 60


def wait_for_answers(prism: Prism, load: Load, more_than: int) -> None:
    prism.wait_until(lambda _: load.answered.total() > more_than, "clients are answered")


def test_an_operator_who_evicts_at_random_breaks_nothing(prism: Prism) -> None:
    chosen = random.Random(2)
    restarts = [worker.restarts for worker in prism.status().workers]
    with loaded(prism, MODELS, clients=12) as load:
        for swap in range(SWAPS):
            wait_for_answers(prism, load, more_than=swap)
            evict(prism, chosen.choice(MODELS))
    assert load.failed == []
    assert all(load.answered[name] for name in MODELS)
    assert [worker.restarts for worker in prism.status().workers] == restarts
