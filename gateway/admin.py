"""The admin socket: runs operators' commands and answers each when it is done."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import get_args

from config.errors import OperatorError, RequestError
from config.registry import PolicyName
from enginepool.channel import Channel
from enginepool.messages import Command, CommandResult
from gateway import report, status
from gateway.core import Gateway
from gateway.report import ModelReport, ModelsReport, PolicyReport, Report, StopReport, WorkersReport

log = logging.getLogger("prism.admin")

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)

Outcome = tuple[str, Report]
"""What a command tells people, and what it tells programs."""


class AdminServer:
    """Serves the commands of `prism` on a Unix socket that only its owner can open."""

    def __init__(self, gateway: Gateway, stop: Callable[[], None]) -> None:
        self._gateway = gateway
        self._stop = stop
        self._server: asyncio.AbstractServer | None = None
        self._connections: set[_Connection] = set()
        self._commands: dict[str, Callable[[Command], Awaitable[Outcome]]] = {
            "status": self._status,
            "models": self._models,
            "workers": self._workers,
            "activate": self._activate,
            "evict": self._evict,
            "drain": self._drain,
            "resume": self._resume,
            "policy": self._policy,
            "stop": self._stop_gateway,
        }

    async def start(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        mask = os.umask(0o177)
        try:
            self._server = await loop.create_unix_server(self._accept, str(path))
        finally:
            os.umask(mask)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            await connection.end()

    def _accept(self) -> Channel[Command]:
        connection = _Connection(self._run, self._connections)
        return connection.channel

    async def _run(self, command: Command) -> CommandResult:
        began = time.monotonic()
        try:
            text, data = await self._commands.get(command.name, _no_such_command)(command)
            ok = True
        except (OperatorError, RequestError) as error:
            ok, text, data = False, str(error), Report()
        if command.name not in ("status", "models", "workers"):
            log.info("%s %s: %s", command.name, command.model or command.policy, text)
        return report.result(ok, text, data, time.monotonic() - began)

    async def _status(self, command: Command) -> Outcome:
        return "", status.snapshot(self._gateway)

    async def _models(self, command: Command) -> Outcome:
        return "", ModelsReport(status.models(self._gateway))

    async def _workers(self, command: Command) -> Outcome:
        return "", WorkersReport(status.workers(self._gateway))

    async def _activate(self, command: Command) -> Outcome:
        model = self._gateway.catalog.get(command.model).name
        return await self._gateway.activate(model, command.worker), ModelReport(model)

    async def _evict(self, command: Command) -> Outcome:
        model = self._gateway.catalog.get(command.model).name
        return await self._gateway.evict(model, command.now), ModelReport(model)

    async def _drain(self, command: Command) -> Outcome:
        in_flight = len(self._gateway.live)
        self._gateway.draining = "an operator is draining the gateway"
        await self._gateway.live.drained()
        return f"drained: {in_flight} requests finished; new ones are refused until `prism resume`", Report()

    async def _resume(self, command: Command) -> Outcome:
        self._gateway.draining = ""
        return "new requests are accepted again", Report()

    async def _policy(self, command: Command) -> Outcome:
        if command.policy not in POLICIES:
            raise OperatorError(f"there is no policy {command.policy}; there are {', '.join(POLICIES)}")
        return await self._gateway.change_policy(command.policy, command.within), PolicyReport(command.policy)

    async def _stop_gateway(self, command: Command) -> Outcome:
        in_flight = len(self._gateway.live)
        self._stop()
        grace = self._gateway.registry.gateway.grace
        return f"stopping; {in_flight} requests in flight have {grace:g} s to finish", StopReport(in_flight)


async def _no_such_command(command: Command) -> Outcome:
    raise OperatorError(f"there is no command {command.name}")


class _Connection:
    """One client of the admin socket. Its unfinished commands are cancelled when it disconnects."""

    def __init__(self, run: Callable[[Command], Awaitable[CommandResult]], connections: set[_Connection]) -> None:
        self._run = run
        self._connections = connections
        self._tasks: set[asyncio.Task[None]] = set()
        self.channel: Channel[Command] = Channel(Command, self._on_command, self._on_closed)
        connections.add(self)

    def _on_command(self, command: Command) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(command))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, command: Command) -> None:
        """Root of the task that runs one command."""
        try:
            result = await self._run(command)
        except Exception as error:
            log.exception("command %s failed", command.name)
            result = report.result(False, f"internal error: {error}", Report(), 0.0)
        if not self.channel.closed:
            self.channel.send(result)

    def _on_closed(self, error: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()
        self._connections.discard(self)

    async def end(self) -> None:
        """Cancel the running commands and close the connection."""
        for task in self._tasks:
            task.cancel()
        self.channel.close()
