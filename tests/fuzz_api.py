"""Asks a gateway for all that its API has, with wrong types, extremes and nulls, beside streams that must not change.

    python -m tests.fuzz_api [--engine sglang] [--examples 2000] [--seed 1] [--start 0]

First each field of each route by itself with each odd value, then several at a time at random. Request number N is the
same in every run with that seed, so a run that was cut off goes on with `--start`. Exits with 1 if a worker died, an
answer was a 5xx other than 503, none came, or a stream said something else than with nobody beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from enginepool.engines.sglang.front.fields import PASSED_OVER, ROUTES, SAMPLING
from gateway.demo_models import make_demo_models
from tests.rig.serving import Prism

MODEL = "llama-tiny"
CONTEXT = 256
"""Tokens: an answer without a limit shall end soon."""
AT_ONCE = 4
STREAMS = 2
PATIENCE = 60.0
"""Seconds for an answer; then it hangs."""
STREAMED = {"model": MODEL, "prompt": "Once", "max_tokens": 48, "temperature": 0, "ignore_eos": True, "stream": True}

_TALK = [{"role": "user", "content": "Hello"}]
BASES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": _TALK, "max_tokens": 4},
    "/v1/completions": {"prompt": "Once", "max_tokens": 4},
    "/v1/responses": {"input": "Once", "max_output_tokens": 4},
    "/v1/embeddings": {"input": "Once"},
    "/v1/classify": {"input": "Once"},
    "/v1/score": {"query": "a", "items": ["b", "c"], "label_token_ids": [1, 2]},
    "/v1/rerank": {"query": "a", "documents": ["b", "c"]},
    "/v1/tokenize": {"prompt": "Once"},
    "/v1/detokenize": {"tokens": [5, 6]},
    "/generate": {"text": "Once", "sampling_params": {"max_new_tokens": 4}},
}
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), "", "a", "auto", "\ud800", "\0", "x" * 3000, '{"type": "object"}',
    [], [None], [[]], [[[]]], [1], [-1], [2**40], [[1]], [[1], []], ["a"], ["a", None], [0.5], list(range(3000)),
    {}, {"a": 1}, {"5": 1e308}, {"type": "json_object"}, {"type": "x"}, {"include_usage": True}, [{}], [{"a": []}],
    [{"role": "user", "content": None}], [{"role": "tool", "content": "a"}], [{"role": "user", "content": [{}]}],
    [{"role": "assistant", "content": "a", "tool_calls": [{}]}], [{"type": "function", "function": {"name": "f"}}],
)  # fmt: skip
FITTING: dict[str, tuple[Any, ...]] = {
    "stream": (True,),
    "n": (2, 3),
    "logprobs": (True, 3),
    "top_logprobs": (3,),
    "top_logprobs_num": (3,),
    "return_logprob": (True,),
    "token_ids_logprob": ([1, 2],),
    "logprob_start_len": (0,),
    "min_tokens": (2,),
    "min_new_tokens": (2,),
    "temperature": (0, 1.5),
    "repetition_penalty": (0.5, 1.5),
    "frequency_penalty": (-2, 2),
    "logit_bias": ({"5": 100}, {"5": -100}),
    "regex": ("[ab]+",),
    "response_format": ({"type": "json_object"},),
    "stop": ("a", ["a", "b"]),
    "echo": (True,),
    "input_ids": ([5, 6, 7],),
}
"""Values that are likely to be served, so that odd ones do not meet refusals only."""


@dataclass
class Found:
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    streams: int = 0
    """That ended, with the same text as ever."""
    errors: list[str] = field(default_factory=list)
    """Those that the rank has lived through."""


def requests(seed: int, start: int, count: int) -> Iterator[tuple[int, str, bytes]]:
    """Number, route and body of each request."""
    singles = list(_one_by_one())
    random.Random(seed).shuffle(singles)
    for number in range(start, start + count):
        path, fields = singles[number] if number < len(singles) else _at_random(random.Random(f"{seed}:{number}"))
        yield number, path, json.dumps(_with(path, fields)).encode()


def fields_of(path: str) -> list[str]:
    """A field of `sampling_params` after a dot."""
    own = ROUTES[path].served | ROUTES[path].refused | PASSED_OVER
    inner = SAMPLING.served | SAMPLING.refused if "sampling_params" in own else frozenset()
    return sorted({*own, *(f"sampling_params.{it}" for it in inner)} - {"model"})


def _one_by_one() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in BASES:
        for name in fields_of(path):
            yield from ((path, {name: value}) for value in (*ODD, *_fitting(name)))


def _fitting(name: str) -> tuple[Any, ...]:
    return FITTING.get(name.removeprefix("sampling_params."), ())


def _at_random(chance: random.Random) -> tuple[str, dict[str, Any]]:
    path = chance.choice(list(BASES))
    names = fields_of(path)
    likely = [name for name in names if _fitting(name)]
    fields = {name: chance.choice(_fitting(name)) for name in chance.sample(likely, min(3, len(likely)))}
    for name in chance.sample(names, chance.randint(0, 2)):
        fields[name] = chance.choice(ODD)
    return path, fields


def _with(path: str, fields: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": MODEL, **BASES[path]}
    for name, value in fields.items():
        outer, _, inner = name.partition(".")
        if inner:
            sampling = body[outer] if isinstance(body.get(outer), dict) else {}
            body[outer] = {**sampling, inner: value}
        else:
            body[name] = value
    return body


class Fuzzing:
    """Of one gateway."""

    def __init__(self, client: aiohttp.ClientSession, found: Found) -> None:
        self._client = client
        self._found = found
        self._over = False

    async def run(self, todo: Iterator[tuple[int, str, bytes]]) -> None:
        alone = await self._stream()
        beside = [asyncio.create_task(self._keep_streaming(alone)) for _ in range(STREAMS)]
        await asyncio.gather(*(self._keep_asking(todo) for _ in range(AT_ONCE)))
        self._over = True
        await asyncio.gather(*beside)

    async def _keep_asking(self, todo: Iterator[tuple[int, str, bytes]]) -> None:
        for number, path, body in todo:
            try:
                status, text = await asyncio.wait_for(self._ask(path, body), PATIENCE)
            except (TimeoutError, aiohttp.ClientError) as error:
                self._problem(number, path, body, repr(error))
                continue
            self._found.statuses[path, status] += 1
            if status >= 500 and status != 503:
                self._problem(number, path, body, f"{status} {text[:300]!r}")

    async def _ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        async with self._client.post(path, data=body, headers={"Content-Type": "application/json"}) as response:
            return response.status, await response.read()

    def _problem(self, number: int, path: str, body: bytes, what: str) -> None:
        self._found.problems.append(f"request {number}: {path} {body[:600].decode()}: {what}")
        print(self._found.problems[-1], flush=True)

    async def _keep_streaming(self, alone: str) -> None:
        while not self._over:
            text = await self._stream()
            if text == alone:
                self._found.streams += 1
            else:
                self._found.problems.append(f"a stream said {text!r}, and not {alone!r}")
                print(self._found.problems[-1], flush=True)

    async def _stream(self) -> str:
        status, data = await self._ask("/v1/completions", json.dumps(STREAMED).encode())
        events = [it.removeprefix(b"data: ") for it in data.split(b"\n\n") if it.startswith(b"data: {")]
        if status != 200 or not data.endswith(b"data: [DONE]\n\n"):
            return f"{status} {data[-300:]!r}"
        return "".join(choice["text"] for it in events for choice in json.loads(it).get("choices", ()))


def fuzz(engine: str, made: Path, folder: Path, todo: Iterator[tuple[int, str, bytes]]) -> Found:
    """Serve the demo's model in the folder `made`, with all files below `folder`, and ask."""
    prism = Prism.start(folder / "gateway", _registry(engine, _small_model(made, folder)))
    found = Found()
    try:
        prism.wait_for_workers()
        assert prism.command("activate", model=MODEL).ok
        asyncio.run(_ask_all(prism, found, todo))
        if deaths := sum(worker.restarts for worker in prism.status().workers):
            found.problems.append(f"{deaths} workers died:\n" + "\n".join(prism.log[-60:]))
        found.errors = [line for line in prism.log if "error while" in line or "could not be" in line]
    finally:
        prism.close()
    return found


async def _ask_all(prism: Prism, found: Found, todo: Iterator[tuple[int, str, bytes]]) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(prism.url, connector=connector, timeout=aiohttp.ClientTimeout(None)) as client:
        await Fuzzing(client, found).run(todo)


def _small_model(made: Path, folder: Path) -> Path:
    small = shutil.copytree(made, folder / MODEL)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "max_position_embeddings": CONTEXT}))
    return small


def _registry(engine: str, model: Path) -> dict[str, object]:
    pool: dict[str, object] = {"engine": engine, "workers_per_device": 1}
    if engine == "sglang":
        pool |= {"kv_memory": "64MiB"}
    return {"pool": pool, "models": [{"name": MODEL, "path": str(model), "dtype": "float32"}]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engine", choices=("sglang", "transformers"), default="sglang")
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first request")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="prism-fuzz-") as folder:
        models = make_demo_models(Path(folder, "models"), lambda text: None)
        made = next(it for it in models if it.name == MODEL)
        found = fuzz(given.engine, made, Path(folder), requests(given.seed, given.start, given.examples))
    for (path, status), count in sorted(found.statuses.items()):
        print(f"{path} {status}: {count}")
    print(f"{sum(found.statuses.values())} answers, {found.streams} streams as ever, {len(found.problems)} problems")
    print(f"to go on: --seed {given.seed} --start {given.start + given.examples}")
    print("\n".join(found.errors))
    print("\n".join(it for it in found.problems if not it.startswith("request")))
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
