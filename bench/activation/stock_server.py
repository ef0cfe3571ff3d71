"""Starts SGLang's own server for one model, as a baseline for activations."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.load.client import session
from bench.load.operating import ask
from bench.subjects.processes import free_port, running

MODULE = "sglang.launch_server"
HIGHEST_PORT = 55000
"""Upper limit, because SGLang uses a second port 10000 above."""
START_TIMEOUT = 900.0
"""Timeout in seconds; the first time on a machine it compiles kernels."""


class StockServer:
    """A running server of `model`; `first_token` is the time from starting its process to its first token."""

    def __init__(self, url: str, client: aiohttp.ClientSession, model: str, first_token: float) -> None:
        self.url = url
        self.client = client
        self.model = model
        self.first_token = first_token


@asynccontextmanager
async def stock_server(model: str, path: Path, prompt: str, arguments: Sequence[str]) -> AsyncIterator[StockServer]:
    """Start the server and send `prompt` once. Raises: StudyError."""
    port = free_port()
    while port > HIGHEST_PORT:
        port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", MODULE, "--model-path", path, "--served-model-name", model]
    command += ["--host", "127.0.0.1", "--port", str(port), *arguments]
    with tempfile.TemporaryDirectory(prefix="prism-bench-") as folder:
        began = time.perf_counter()
        async with running("sglang", command, Path(folder)) as server, session(None) as client:
            await server.until_ready(lambda: _healthy(client, url), START_TIMEOUT)
            waited = time.perf_counter() - began
            outcome = await ask(client, url, model, prompt, 8)
            assert outcome.first_token is not None
            yield StockServer(url, client, model, waited + outcome.first_token)


async def _healthy(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(f"{url}/health") as response:
            return response.status == 200
    except aiohttp.ClientError:
        return False
