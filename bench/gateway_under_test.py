"""A gateway of the benchmark's own: started on a registry, asked as a client and an operator would, and stopped."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.errors import BenchError
from bench.openai_client import chat_body, session, stream_chat
from bench.outcomes import Outcome
from bench.processes import Server, running
from bench.workload import Arrival
from config.errors import OperatorError
from enginepool.messages import Command, CommandResult
from gateway.admin_client import run_command

PATIENCE = 900.0
"""Seconds for an answer or a command; the first ones on a machine may compile kernels."""
RESTING = frozenset({"blank", "active", "parked"})
"""States in which a worker stays until somebody wants something of it."""
POLL = 0.02
LISTENING = "listening on "


class GatewayUnderTest:
    def __init__(self, url: str, admin_socket: Path, client: aiohttp.ClientSession, server: Server) -> None:
        self.url = url
        self.client = client
        self.pid = server.pid
        self._admin_socket = admin_socket
        self._server = server

    async def command(self, name: str, **fields: Any) -> CommandResult:
        """Raises: BenchError when it fails."""
        try:
            result = await asyncio.to_thread(run_command, self._admin_socket, Command(name, **fields))
        except OperatorError as error:
            self._server.check()
            raise BenchError(str(error)) from error
        if not result.ok:
            raise BenchError(f"prism {name}: {result.text}{self._server.last_words()}")
        return result

    async def models(self) -> dict[str, dict[str, Any]]:
        """What `prism models` says, by name."""
        return {entry["name"]: entry for entry in (await self.command("models")).data["models"]}

    async def workers(self) -> list[dict[str, Any]]:
        """What `prism workers` says."""
        found: list[dict[str, Any]] = (await self.command("workers")).data["workers"]
        return found

    async def active_worker(self, model: str) -> dict[str, Any]:
        """The one that serves `model`. Raises: BenchError."""
        found = [it for it in await self.workers() if it["model"] == model and it["state"] == "active"]
        if len(found) != 1:
            raise BenchError(f"{model} is active on {len(found)} workers{self._server.last_words()}")
        return found[0]

    async def check_workers(self) -> None:
        """Raises: BenchError if one has died: requests are served all the same, but no figure counts then."""
        if deaths := sum(worker["restarts"] for worker in await self.workers()):
            raise BenchError(f"{deaths} workers died meanwhile{self._server.last_words()}")

    async def evict(self, model: str) -> None:
        """Evict it if it is active."""
        if (await self.models())[model]["state"] == "active":
            await self.command("evict", model=model)

    async def until_workers(
        self, holds: Callable[[list[dict[str, Any]]], bool], what: str, within: float = PATIENCE
    ) -> list[dict[str, Any]]:
        """Wait until `holds(workers)`. Raises: BenchError, saying `what` was waited for."""
        deadline = time.monotonic() + within
        while not holds(workers := await self.workers()):
            if time.monotonic() > deadline:
                states = ", ".join(f"{worker['state']} {worker['model'] or ''}".strip() for worker in workers)
                raise BenchError(f"waited {within:.0f} s until {what}; the workers are {states}")
            await asyncio.sleep(POLL)
        return workers

    async def settled(self) -> list[dict[str, Any]]:
        """Wait until no worker is changing its state."""
        return await self.until_workers(
            lambda workers: all(worker["state"] in RESTING for worker in workers), "no worker changes its state"
        )

    async def ask(self, model: str, prompt: str, tokens: int) -> Outcome:
        """Stream a chat to its end; times count from the sending. Raises: BenchError when it fails."""
        return await ask(self.client, self.url, model, prompt, tokens)


async def ask(client: aiohttp.ClientSession, url: str, model: str, prompt: str, tokens: int) -> Outcome:
    """Stream a chat of any OpenAI-compatible server to its end; times count from the sending.

    Raises:
        BenchError: it fails, or has no token.
    """
    began = time.perf_counter()
    outcome = Outcome(Arrival(0.0, model, 0, tokens))
    body = chat_body(model, prompt, tokens)
    await stream_chat(client, url, body, outcome, lambda: time.perf_counter() - began, PATIENCE)
    if outcome.error is not None or outcome.first_token is None:
        raise BenchError(f"{model} failed on a request: {outcome.error or 'no token'}")
    return outcome


@asynccontextmanager
async def serving(
    registry: Mapping[str, Any], ready_within: float, record: Path | None = None
) -> AsyncIterator[GatewayUnderTest]:
    """`prism serve` on `registry` with all its workers up; port and admin socket are set here.

    `record` is where it writes down what its scheduler decides.

    Raises:
        BenchError: it does not start, or its workers are not up after `ready_within` seconds.
    """
    with tempfile.TemporaryDirectory(prefix="prism-bench-") as name:
        folder = Path(name)
        admin_socket = folder / "admin.sock"
        gateway = {**registry.get("gateway", {}), "port": 0, "admin_socket": str(admin_socket)}
        (folder / "registry.yaml").write_text(yaml.safe_dump({**registry, "gateway": gateway}))
        recorded = [] if record is None else ["--record", record]
        command = [sys.executable, "-m", "gateway.cli", "serve", folder / "registry.yaml", *recorded]
        async with running("prism", command, folder) as server, session(None) as client:
            await server.until_ready(lambda: _workers_up(admin_socket), ready_within)
            yield GatewayUnderTest(await _url(server), admin_socket, client, server)


async def _workers_up(admin_socket: Path) -> bool:
    try:
        workers = (await asyncio.to_thread(run_command, admin_socket, Command("workers"))).data["workers"]
    except OperatorError:
        return False
    return all(worker["state"] in RESTING for worker in workers)


async def _url(server: Server) -> str:
    """Where it says that it listens, which it does when its admin socket is there already."""

    async def listens() -> bool:
        return server.said(LISTENING) is not None

    await server.until_ready(listens, PATIENCE)
    return server.said(LISTENING) or ""
