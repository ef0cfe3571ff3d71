"""Clients that chat with some models for as long as a test wants."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import openai

from tests.rig.asking import openai_client
from tests.rig.serving import Prism


class Load:
    """`answered` and `failed` grow while it runs."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.failed: list[str] = []
        self.stop = threading.Event()

    def run(self, prism: Prism, models: Sequence[str], seed: int) -> None:
        chosen = random.Random(seed)
        with openai_client(prism) as client:
            while not self.stop.is_set():
                model = chosen.choice(models)
                try:
                    _chat(client, model, chosen)
                except openai.OpenAIError as error:
                    self.failed.append(f"{model}: {error}")
                else:
                    self.answered[model] += 1


def _chat(client: openai.OpenAI, model: str, chosen: random.Random) -> None:
    words = " ".join(str(chosen.randrange(1000)) for _ in range(chosen.choice((10, 100, 1000))))
    asked: Any = [{"role": "user", "content": words}]
    stream = client.chat.completions.create(
        model=model, messages=asked, max_tokens=chosen.randrange(16, 512), stream=True, extra_body={"ignore_eos": True}
    )
    for _ in stream:
        pass


@contextmanager
def loaded(prism: Prism, models: Sequence[str], clients: int) -> Iterator[Load]:
    """All clients have ended afterwards, each after its last answer."""
    load = Load()
    threads = [threading.Thread(target=load.run, args=(prism, models, seed)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join()
