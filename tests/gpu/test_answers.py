"""Greedy answers are SGLang's own, token for token, however a model came to its worker, whoever is busy beside it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.gpu.conftest import Answers
from tests.gpu.load import loaded
from tests.gpu.settings import COMPARED, LONG_PROMPTS, MODELS, PROMPTS, TOKENS, answer, evict
from tests.rig.serving import Prism

pytestmark = pytest.mark.gpu

SWAPS = 50


def activated_from(prism: Prism, model: str) -> str:
    (worker,) = (it for it in prism.status().workers if it.model == model)
    return "parked" if "resume" in (worker.activation_phases_s or {}) else "blank"


@pytest.mark.parametrize("model", COMPARED)
def test_the_first_activation_answers_as_sglang_does(prism: Prism, expected: Answers, model: str) -> None:
    assert [answer(prism, model, prompt) for prompt in PROMPTS] == expected[model]
    evict(prism, model)


def test_so_do_all_later_ones_from_parked_and_blank_workers(prism: Prism, expected: Answers) -> None:
    chosen, ways = random.Random(1), set()
    for swap in range(SWAPS):
        model, number = chosen.choice(COMPARED), swap % len(PROMPTS)
        assert answer(prism, model, PROMPTS[number]) == expected[model][number]
        ways.add(activated_from(prism, model))
        evict(prism, model)
    assert ways == {"parked", "blank"}


@pytest.mark.parametrize("model", COMPARED)
def test_neighbours_that_are_busy_change_nothing(prism: Prism, expected: Answers, model: str) -> None:
    others = [name for name in MODELS if name != model]
    with loaded(prism, others, clients=4) as load:
        prism.wait_until(lambda _: all(load.answered[name] for name in others), "the others are busy")
        for number, prompt in enumerate(PROMPTS):
            assert answer(prism, model, prompt) == expected[model][number]
            evict(prism, model)
    assert load.failed == []


def test_long_prompts_that_are_prefilled_in_pieces_are_answered(prism: Prism) -> None:
    restarts = [worker.restarts for worker in prism.status().workers]
    with ThreadPoolExecutor(len(LONG_PROMPTS)) as clients:
        answers = list(clients.map(lambda prompt: answer(prism, "llama-3b", prompt), LONG_PROMPTS))
    assert [len(tokens) for tokens in answers] == [TOKENS] * len(LONG_PROMPTS)
    assert [worker.restarts for worker in prism.status().workers] == restarts
