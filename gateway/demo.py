"""The demo: three tiny models on two workers, so that serving all three takes a swap.

`prism serve --demo` serves it. `python -m gateway.demo` (make demo) starts that, sends a streamed chat to each model,
reports what happened, and keeps serving until Ctrl-C; with --once it ends after the report.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import aiohttp

from config.errors import OperatorError, PoolError, PrismError
from config.reader import read_registry
from config.registry import Registry
from config.units import format_duration
from enginepool.process import die_with_parent
from gateway.admin_client import read_status
from gateway.report import Status
from gateway.tables import table

QUESTION = "Why do idle models not need a GPU of their own?"
MAX_TOKENS = 24
REGISTRY = "registry.yaml"
"""Name of the registry in the demo's folder. It is written only if it is missing, so it can be edited."""
FROM_CLONE = "../../.demo/"
"""Where the example registry looks for the models, seen from its own place in a clone."""


def prepare(folder: Path) -> Path:
    """Make the models and the registry unless they are there; returns the registry's path.

    The models are made in a process of their own: the gateway never imports torch.

    Raises:
        PoolError: making them failed; its output says why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "gateway.demo_models", str(folder / "models")]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode != 0:
        raise PoolError(f"the demo's models could not be made in {folder}")
    registry = folder / REGISTRY
    if not registry.exists():
        example = files("config").joinpath("examples/demo.yaml").read_text()
        registry.write_text(example.replace(FROM_CLONE, ""))
    return registry


def registry(folder: Path) -> Registry:
    """The demo's registry; the models it names are made if need be.

    Raises:
        PoolError: the models cannot be made.
        ConfigError: the registry in `folder` was edited and has mistakes.
    """
    return read_registry(prepare(folder))


@dataclass(frozen=True, slots=True)
class Chat:
    """One streamed chat as its client saw it; `ttft` in seconds from sending it."""

    model: str
    ttft: float
    tokens: int
    text: str


async def _run(options: argparse.Namespace) -> int:
    current = asyncio.current_task()
    assert current is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)
    async with _served(options) as (url, admin_socket):
        names = await _model_names(url)
        chats = [await _chat(url, name) for name in names]
        again = [await _chat(url, name) for name in names]
        print(_report(chats, again, read_status(admin_socket)))
        if options.once:
            return 0
        print(_invitation(names[0], url), flush=True)
        await asyncio.Event().wait()
    return 0


@contextlib.asynccontextmanager
async def _served(options: argparse.Namespace) -> AsyncIterator[tuple[str, Path]]:
    """`prism serve --demo` in a process of its own, ready."""
    command = [sys.executable, "-m", "gateway.cli", "serve", "--demo", "--demo-dir", str(options.demo_dir)]
    command += ["--port", str(options.port)] if options.port is not None else []
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    try:
        url = await _listening_url(process)
        yield url, read_registry(options.demo_dir / REGISTRY).gateway.admin_socket
        if process.returncode is not None:
            raise PoolError(f"the gateway ended with {process.returncode}")
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _listening_url(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    if not line.startswith("listening on "):
        raise PoolError("the gateway did not start; its output above says why")
    return line.removeprefix("listening on ").strip()


async def _model_names(url: str) -> list[str]:
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/models") as response:
        return [card["id"] for card in (await response.json())["data"]]


async def _chat(url: str, model: str) -> Chat:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": MAX_TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began = time.monotonic()
    ttft, text, tokens = 0.0, "", 0
    async with aiohttp.ClientSession() as session, session.post(f"{url}/v1/chat/completions", json=body) as response:
        if response.status != 200:
            raise OperatorError(f"{model} answered {response.status}: {await response.text()}")
        async for event in _events(response):
            if "error" in event:
                raise OperatorError(f"{model}: {event['error']['message']}")
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                ttft = ttft or time.monotonic() - began
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    if not tokens:
        raise OperatorError(f"{model} answered without a token")
    return Chat(model, ttft, tokens, text)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    async for line in response.content:
        if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
            yield json.loads(line[6:])


def _report(chats: Sequence[Chat], again: Sequence[Chat], status: Status) -> str:
    rows = [
        (first.model, format_duration(first.ttft), format_duration(second.ttft), second.tokens, repr(second.text[:40]))
        for first, second in zip(chats, again, strict=True)
    ]
    happened = [f"  {entry.text}" for entry in status.decisions]
    summary = f"{len(chats)} models answered, each twice, on {len(status.workers)} workers"
    return "\n".join(
        [
            "",
            f"{summary} (random weights: the text means nothing)",
            "",
            table(("model", "first token, from disk", "and from host memory", "tokens", "text"), rows),
            "",
            "what happened",
            *happened,
        ]
    )


def _invitation(model: str, url: str) -> str:
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": QUESTION}]})
    return "\n".join(
        [
            "",
            "try next",
            f"  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
            "  .venv/bin/prism status",
            "",
            "Serving until Ctrl-C.",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.demo", description="Shows Prism swapping models.")
    parser.add_argument("--once", action="store_true", help="end after the report")
    parser.add_argument("--port", type=int, help="override the registry's port")
    parser.add_argument("--demo-dir", type=Path, default=Path(".demo"))
    try:
        sys.exit(asyncio.run(_run(parser.parse_args())))
    except PrismError as error:
        print(f"demo failed: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)


if __name__ == "__main__":
    main()
