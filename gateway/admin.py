"""The admin socket: one command a connection asks for at a time, answered when it is done."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, get_args

from config.errors import OperatorError, RequestError
from config.registry import PolicyName
from enginepool.channel import Channel
from enginepool.messages import Command, CommandResult
from gateway import status
from gateway.core import Gateway

log = logging.getLogger("prism.admin")

POLICIES: tuple[PolicyName, ...] = get_args(PolicyName)

Outcome = tuple[str, dict[str, Any]]
"""What to tell people, and programs."""


class AdminServer:
    """Serves the commands of `prism` on a Unix socket that only its owner may use."""

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
            ok, text, data = False, str(error), {}
        if command.name not in ("status", "models", "workers"):
            log.info("%s %s: %s", command.name, command.model or command.policy, text)
        return CommandResult(ok, text, data, time.monotonic() - began)

    async def _status(self, command: Command) -> Outcome:
        return "", status.whole(self._gateway)

    async def _models(self, command: Command) -> Outcome:
        return "", {"models": status.models(self._gateway)}

    async def _workers(self, command: Command) -> Outcome:
        return "", {"workers": status.workers(self._gateway)}

    async def _activate(self, command: Command) -> Outcome:
        model = self._gateway.catalog.get(command.model).name
        return await self._gateway.activate(model, command.worker), {"model": model}

    async def _evict(self, command: Command) -> Outcome:
        model = self._gateway.catalog.get(command.model).name
        return await self._gateway.evict(model, command.now), {"model": model}

    async def _drain(self, command: Command) -> Outcome:
        in_flight = len(self._gateway.live)
        self._gateway.draining = "an operator drains the gateway"
        await self._gateway.live.drained()
        return f"drained: {in_flight} requests finished; new ones are refused until `prism resume`", {}

    async def _resume(self, command: Command) -> Outcome:
        self._gateway.draining = ""
        return "new requests are taken again", {}

    async def _policy(self, command: Command) -> Outcome:
        if command.policy not in POLICIES:
            raise OperatorError(f"there is no policy {command.policy}; there are {', '.join(POLICIES)}")
        return await self._gateway.change_policy(command.policy, command.within), {"policy": command.policy}

    async def _stop_gateway(self, command: Command) -> Outcome:
        in_flight = len(self._gateway.live)
        self._stop()
        grace = self._gateway.registry.gateway.grace
        return f"stopping; {in_flight} requests in flight have {grace:g} s to finish", {"in_flight": in_flight}


async def _no_such_command(command: Command) -> Outcome:
    raise OperatorError(f"there is no command {command.name}")


class _Connection:
    """One client of the admin socket. A client that goes away takes its unfinished commands with it."""

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
        """Root of the task of one command."""
        try:
            result = await self._run(command)
        except Exception as error:
            log.exception("command %s failed", command.name)
            result = CommandResult(False, f"internal error: {error}", {}, 0.0)
        if not self.channel.closed:
            self.channel.send(result)

    def _on_closed(self, error: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()
        self._connections.discard(self)

    async def end(self) -> None:
        """Let running commands be answered no more, and close."""
        for task in self._tasks:
            task.cancel()
        self.channel.close()
