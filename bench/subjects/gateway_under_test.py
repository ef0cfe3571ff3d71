"""Runs a gateway for a benchmark, and uses it as a client and an operator would."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.load.client import session
from bench.load.operating import PATIENCE, RESTING, Operator
from bench.subjects.processes import Server, running
from config.errors import OperatorError
from gateway.admin_client import read_workers
from simulator.errors import StudyError

LISTENING = "listening on "


class GatewayUnderTest(Operator):
    """A running gateway; `log` is the file of its output."""

    def __init__(self, url: str, admin_socket: Path, client: aiohttp.ClientSession, server: Server) -> None:
        super().__init__(url, admin_socket, client)
        self.pid = server.pid
        self.log = server.log
        self._server = server

    def explain(self, text: str) -> StudyError:
        try:
            self._server.check()
        except StudyError as ended:
            return ended
        return StudyError(f"{text}{self._server.last_words()}")


@asynccontextmanager
async def serving(
    registry: Mapping[str, Any], ready_within: float, record: Path | None = None
) -> AsyncIterator[GatewayUnderTest]:
    """Run `prism serve` on `registry` and wait for all its workers; port and admin socket are set here.

    `record` is the file for recording the scheduler's decisions.

    Raises:
        StudyError: it does not start, or its workers are not ready within `ready_within` seconds.
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
        workers = await asyncio.to_thread(read_workers, admin_socket)
    except OperatorError:
        return False
    return all(worker.state in RESTING for worker in workers)


async def _url(server: Server) -> str:
    """The URL printed by the gateway, which happens after it has created its admin socket."""

    async def listens() -> bool:
        return server.said(LISTENING) is not None

    await server.until_ready(listens, PATIENCE)
    return server.said(LISTENING) or ""
