"""An unmodified SGLang engine under remote control: `python -m bench.calibration.subject MODEL_FOLDER`.

It reads one JSON command per line from stdin and writes one JSON answer per line to stdout; it ends with stdin:

    (started)                                              {"ready": true} once the engine is ready
    {"do": "measure", batch, prompt, tokens, times, warm}  {"seconds": [...], "steps": [...]}
    {"do": "repeat", batch, prompt, tokens, until}         {"rounds": [[begin, end], ...]}
    {"do": "end"}                                          (ends)

A round sends `batch` prompts of `prompt` random token ids at once and generates `tokens` new tokens for each. `seconds`
are durations of rounds, `steps` those of a decode step in each (empty with one token). Times are in seconds of
time.time(). With `warm`, the default, each kind of round is run once before it is first timed.
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
"""Maximum prompt tokens per prefill step."""
CONTEXT = 20480
"""Maximum tokens of a request."""
TOKEN_IDS = range(10, 4000)
"""Token ids that all models have, including shrunken ones."""


@dataclass(frozen=True)
class EngineRound:
    """One round, in times of time.time()."""

    begin: float
    end: float
    step: float | None
    """Seconds per decode step, from the first to the last token of the request that is prefilled last."""


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
    """The original stdin and stdout, which SGLang's processes do not inherit: their output goes to stderr, and the
    pipes are closed as soon as this process ends."""
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
        # As in Prism's workers, idle engines leave the CPU to others.
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
        # So that max_total_tokens determines the size of the KV cache.
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
    """Runs rounds on one engine."""

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
        """Prompts, cached so that repeated rounds have no pauses. Without a prefix cache this does not speed up the
        engine."""
        return [self._random.choices(TOKEN_IDS, k=prompt) for _ in range(batch)]

    def _warm_up(self, prompts: list[list[int]], tokens: int) -> None:
        """Run a kind of round once, as kernels are compiled or chosen when a shape first occurs."""
        kind = (len(prompts), len(prompts[0]), tokens > 1)
        if kind not in self._warmed:
            self._round(prompts, tokens)
            self._warmed.add(kind)

    def _round(self, prompts: list[list[int]], tokens: int) -> EngineRound:
        taken: EngineRound = self._engine.loop.run_until_complete(self._ask(prompts, tokens))
        return taken

    async def _ask(self, prompts: list[list[int]], tokens: int) -> EngineRound:
        """Run all prompts at once. SGLang prefills them in order before it decodes, so all decode together from the
        first token of the last prompt on."""
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
