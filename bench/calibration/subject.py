"""One plain SGLang engine that is told what to do: `python -m bench.calibration.subject MODEL_FOLDER`.

One JSON command a line on stdin, one JSON answer a line on stdout; the end of stdin is an end as well:

    (started)                                              {"ready": true} once the engine can be asked
    {"do": "measure", batch, prompt, tokens, times, warm}  {"seconds": [...], "steps": [...]}
    {"do": "repeat", batch, prompt, tokens, until}         {"rounds": [[begin, end], ...]}
    {"do": "end"}                                          (ends)

`seconds` are of each round, `steps` of a decode step in each (none with one token); rounds are repeated until a time of
time.time(), which begin and end are as well. A round is `batch` prompts of `prompt` random token ids, all at once, with
`tokens` new tokens each. With `warm`, which is so unless said, a kind of round is run once before it is first timed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

GRAPHS = [1, 2, 4, 8, 16, 24, 32, 48, 64]
CHUNK = 8192
"""Tokens of prompts that a prefill step takes."""
CONTEXT = 20480
"""Tokens of the longest request."""
TOKEN_IDS = range(10, 4000)
"""That every model has, the shrunken ones too."""


@dataclass(frozen=True)
class EngineRound:
    """Times of time.time()."""

    begin: float
    end: float
    step: float | None
    """Seconds of a decode step, from the first token of the request that is prefilled last to its last one."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.calibration.subject", description="One plain SGLang engine.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--max-total-tokens", type=int, default=262144)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    chosen = parser.parse_args()
    with _own_pipes() as (commands, answers):
        engine = _engine(chosen)
        try:
            _obey(EngineRounds(engine), commands, answers)
        finally:
            engine.shutdown()


@contextmanager
def _own_pipes() -> Iterator[tuple[TextIO, TextIO]]:
    """What were stdin and stdout. SGLang's processes get neither: what they print goes to stderr, and when this process
    is gone, so are the ends of its pipes."""
    with os.fdopen(os.dup(0)) as commands, os.fdopen(os.dup(1), "w", buffering=1) as answers:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        yield commands, answers


def _engine(chosen: argparse.Namespace) -> Any:
    import sglang

    return sglang.Engine(
        model_path=str(chosen.model),
        load_format="dummy",
        skip_tokenizer_init=True,
        grammar_backend="none",
        context_length=CONTEXT,
        max_running_requests=GRAPHS[-1],
        max_total_tokens=chosen.max_total_tokens,
        chunked_prefill_size=CHUNK,
        disable_radix_cache=True,
        # As Prism's workers: engines that have nothing to do leave the processors to the others.
        sleep_on_idle=True,
        log_level="error",
        **(_on_cpu() if chosen.device == "cpu" else _on_gpu()),
    )


def _on_cpu() -> dict[str, Any]:
    return {
        "device": "cpu",
        "attention_backend": "torch_native",
        "disable_cuda_graph": True,
        "mem_fraction_static": 0.2,
    }


def _on_gpu() -> dict[str, Any]:
    return {
        "attention_backend": "triton",
        "sampling_backend": "pytorch",
        "disable_prefill_cuda_graph": True,
        "cuda_graph_bs_decode": GRAPHS,
        # So that max_total_tokens decides how large the KV cache is.
        "mem_fraction_static": 0.9,
    }


def _obey(rounds: EngineRounds, commands: TextIO, answers: TextIO) -> None:
    print(json.dumps({"ready": True}), file=answers)
    for line in commands:
        command = json.loads(line)
        match command.pop("do"):
            case "measure":
                answer = rounds.measure(**command)
            case "repeat":
                answer = rounds.repeat(**command)
            case "end":
                return
            case other:
                raise ValueError(f"unknown command {other!r}")
        print(json.dumps(answer), file=answers)


class EngineRounds:
    """Of one engine."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._random = random.Random(0)
        self._warmed: set[tuple[int, int, bool]] = set()

    def measure(self, batch: int, prompt: int, tokens: int, times: int, warm: bool = True) -> dict[str, Any]:
        prompts = self._prompts(batch, prompt)
        if warm:
            self._warm_up(prompts, tokens)
        taken = [self._round(prompts, tokens) for _ in range(times)]
        return {
            "seconds": [it.end - it.begin for it in taken],
            "steps": [it.step for it in taken if it.step is not None],
        }

    def repeat(self, batch: int, prompt: int, tokens: int, until: float) -> dict[str, Any]:
        prompts = self._prompts(batch, prompt)
        self._warm_up(prompts, tokens)
        taken = []
        while time.time() < until:
            taken.append(self._round(prompts, tokens))
        return {"rounds": [[it.begin, it.end] for it in taken]}

    def _prompts(self, batch: int, prompt: int) -> list[list[int]]:
        """The same for every round, so that a repeated load has no pauses; without a prefix cache that is no help."""
        return [self._random.choices(TOKEN_IDS, k=prompt) for _ in range(batch)]

    def _warm_up(self, prompts: list[list[int]], tokens: int) -> None:
        """Kernels are compiled, or chosen, when a shape is first met."""
        kind = (len(prompts), len(prompts[0]), tokens > 1)
        if kind not in self._warmed:
            self._round(prompts, tokens)
            self._warmed.add(kind)

    def _round(self, prompts: list[list[int]], tokens: int) -> EngineRound:
        taken: EngineRound = self._engine.loop.run_until_complete(self._ask(prompts, tokens))
        return taken

    async def _ask(self, prompts: list[list[int]], tokens: int) -> EngineRound:
        """All prompts at once. SGLang takes prompts in turn, and before it decodes: so the last one's first token
        is when all of them begin to decode together."""
        sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
        begin = time.time()
        *others, last = prompts
        answers = [self._engine.async_generate(input_ids=one, sampling_params=sampling) for one in others]
        *_, step = await asyncio.gather(*answers, self._watch(last, sampling))
        return EngineRound(begin, time.time(), step)

    async def _watch(self, prompt: list[int], sampling: dict[str, Any]) -> float | None:
        arrived: list[tuple[float, int]] = []
        async for chunk in await self._engine.async_generate(input_ids=prompt, sampling_params=sampling, stream=True):
            arrived.append((time.time(), chunk["meta_info"]["completion_tokens"]))
        (first, tokens_first), (last, tokens_last) = arrived[0], arrived[-1]
        steps = tokens_last - tokens_first
        return (last - first) / steps if steps else None


if __name__ == "__main__":
    main()
