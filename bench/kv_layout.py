"""Measures the cost of elastic KV cache by layout: one SGLang engine on a GPU, with a static KV cache and kvcached.

`python -m bench.kv_layout MODEL_FOLDER --out FILE.json`. Weights are random, which does not affect speed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from enginepool.host.gpu_environment import gpu_environment

_ELASTIC = "ENABLE_KVCACHED"
_VARIANTS: dict[str, dict[str, str]] = {
    "static": {_ELASTIC: "false", "KVCACHED_AUTOPATCH": "0"},
    "contiguous": {"KVCACHED_CONTIGUOUS_LAYOUT": "true"},
    "contiguous, pages ahead": {"KVCACHED_CONTIGUOUS_LAYOUT": "true", "KVCACHED_PAGE_PREALLOC_ENABLED": "true"},
    "by layer": {"KVCACHED_CONTIGUOUS_LAYOUT": "false"},
    "by layer, pages ahead": {"KVCACHED_CONTIGUOUS_LAYOUT": "false", "KVCACHED_PAGE_PREALLOC_ENABLED": "true"},
}
_PREFILL = 4096
_DECODE = 256
_BATCHES = (1, 32)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.kv_layout", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measure(arguments.model)))
        return
    rows = [{"layout": name, **_run(arguments.model, settings)} for name, settings in _VARIANTS.items()]
    _show(rows)
    if arguments.out:
        arguments.out.write_text(json.dumps({"model": arguments.model.name, "rows": rows}, indent=1) + "\n")


def _run(model: Path, settings: dict[str, str]) -> dict[str, float]:
    """Measure in a process of its own, because kvcached is configured by environment variables."""
    environment = {**os.environ, **gpu_environment(os.environ), **settings}
    command = [sys.executable, "-m", "bench.kv_layout", str(model), "--one"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{settings}: {done.stderr[-3000:]}")
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(settings, row, flush=True)
    return row


def _measure(model: Path) -> dict[str, float]:
    import sglang

    engine: Any = sglang.Engine(
        model_path=str(model),
        load_format="dummy",
        skip_tokenizer_init=True,
        attention_backend="triton",
        sampling_backend="pytorch",
        grammar_backend="none",
        disable_prefill_cuda_graph=True,
        cuda_graph_bs_decode=[1, 2, 4, 8, 16, 24, 32],
        mem_fraction_static=0.6,
        disable_radix_cache=True,
        log_level="error",
    )
    try:
        row = {"prefill_s": _prefill(engine)}
        for batch in _BATCHES:
            row[f"decode_{batch}_tokens_per_s"] = _decode(engine, batch)
        return row
    finally:
        engine.shutdown()


def _prefill(engine: Any) -> float:
    """Best TTFT of five prompts of `_PREFILL` tokens, after one warm-up, in seconds."""
    return min(_timed(engine, 1, _PREFILL + turn, 1) for turn in range(6))


def _decode(engine: Any, batch: int) -> float:
    """Tokens per second, best of three, excluding the time of the first token."""
    _timed(engine, batch, 64, _DECODE)
    rates = []
    for _ in range(3):
        first = _timed(engine, batch, 64, 1)
        rates.append(batch * (_DECODE - 1) / (_timed(engine, batch, 64, _DECODE) - first))
    return max(rates)


def _timed(engine: Any, batch: int, prompt: int, tokens: int) -> float:
    prompts = [[(turn * 7919 + place * 104729) % 30000 + 10 for place in range(prompt)] for turn in range(batch)]
    began = time.perf_counter()
    engine.generate(input_ids=prompts, sampling_params={"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True})
    return time.perf_counter() - began


def _show(rows: list[dict[str, Any]]) -> None:
    names = list(rows[0])
    print("  ".join(f"{name:>24}" for name in names))
    for row in rows:
        print("  ".join(f"{row[name]:>24}" if isinstance(row[name], str) else f"{row[name]:>24.4f}" for name in names))


if __name__ == "__main__":
    main()
