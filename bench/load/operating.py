"""Access to a gateway as a client and as an operator, by HTTP and the admin socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from bench.load.client import chat_body, stream_chat
from bench.load.outcomes import RequestOutcome
from bench.load.workload import Arrival
from config.errors import OperatorError
from config.registry import PolicyName
from enginepool.messages import Command, CommandResult
from gateway.admin_client import read_models, read_status, read_workers, run_command
from gateway.report import ModelState, ModelStatus, WorkerStatus
from scheduler.state.phases import Phase
from simulator.errors import StudyError

PATIENCE = 900.0
"""Timeout in seconds of requests and commands; the first ones on a machine may compile kernels."""
RESTING = frozenset({Phase.BLANK, Phase.ACTIVE, Phase.PARKED})
"""States that a worker does not leave by itself."""
POLL = 0.02

T = TypeVar("T")


class Operator:
    def __init__(self, url: str, admin_socket: Path, client: aiohttp.ClientSession) -> None:
        self.url = url
        self.client = client
        self._admin_socket = admin_socket

    def explain(self, text: str) -> StudyError:
        """An error with this text and further details, if any."""
        return StudyError(text)

    async def command(self, name: str, **fields: Any) -> CommandResult:
        """Execute an admin command. Raises: StudyError if it fails."""
        try:
            result = await asyncio.to_thread(run_command, self._admin_socket, Command(name, **fields))
        except OperatorError as error:
            raise self.explain(str(error)) from error
        if not result.ok:
            raise self.explain(f"prism {name}: {result.text}")
        return result

    async def _read(self, read: Callable[[Path], T]) -> T:
        try:
            return await asyncio.to_thread(read, self._admin_socket)
        except OperatorError as error:
            raise self.explain(str(error)) from error

    async def policy(self) -> PolicyName:
        """The policy that is in force. Raises: StudyError."""
        return (await self._read(read_status)).policy

    async def models(self) -> dict[str, ModelStatus]:
        """The data of `prism models`, by name. Raises: StudyError."""
        return {model.name: model for model in await self._read(read_models)}

    async def workers(self) -> list[WorkerStatus]:
        """The data of `prism workers`, by number. Raises: StudyError."""
        return await self._read(read_workers)

    async def active_worker(self, model: str) -> WorkerStatus:
        """The only worker that serves `model`. Raises: StudyError."""
        found = [it for it in await self.workers() if it.model == model and it.state is Phase.ACTIVE]
        if len(found) != 1:
            raise self.explain(f"{model} is active on {len(found)} workers")
        return found[0]

    async def check_workers(self) -> None:
        """Raises: StudyError if a worker has died, which invalidates measurements even though requests are served."""
        if deaths := sum(worker.restarts for worker in await self.workers()):
            raise self.explain(f"{deaths} workers died meanwhile")

    async def evict(self, model: str) -> None:
        """Evict it if it is active."""
        if (await self.models())[model].state is ModelState.ACTIVE:
            await self.command("evict", model=model)

    async def until_workers(
        self, holds: Callable[[list[WorkerStatus]], bool], what: str, within: float = PATIENCE
    ) -> list[WorkerStatus]:
        """Wait until `holds(workers)`; `what` describes it in the error. Raises: StudyError after the timeout."""
        deadline = time.monotonic() + within
        while not holds(workers := await self.workers()):
            if time.monotonic() > deadline:
                states = ", ".join(f"{worker.state} {worker.model or ''}".strip() for worker in workers)
                raise StudyError(f"waited {within:.0f} s until {what}; the workers are {states}")
            await asyncio.sleep(POLL)
        return workers

    async def settled(self) -> list[WorkerStatus]:
        """Wait until no worker is changing its state."""
        return await self.until_workers(
            lambda workers: all(worker.state in RESTING for worker in workers), "no worker changes its state"
        )

    async def ask(self, model: str, prompt: str, tokens: int) -> RequestOutcome:
        """Stream a chat to its end; times count from sending it. Raises: StudyError if it fails."""
        return await ask(self.client, self.url, model, prompt, tokens)


def pid_of(worker: WorkerStatus) -> int:
    """Raises: StudyError if it has no process at the moment."""
    if worker.pid is None:
        raise StudyError(f"worker {worker.worker} has no process")
    return worker.pid


async def ask(client: aiohttp.ClientSession, url: str, model: str, prompt: str, tokens: int) -> RequestOutcome:
    """Stream a chat from any OpenAI-compatible server to its end; times count from sending it.

    Raises:
        StudyError: it fails or yields no tokens.
    """
    outcome = await send(client, url, model, chat_body(model, prompt, tokens))
    if outcome.first_token is None:
        raise StudyError(f"{model} failed on a request: no token")
    return outcome


async def send(client: aiohttp.ClientSession, url: str, model: str, body: bytes) -> RequestOutcome:
    """Stream a chat with the given body to its end. Raises: StudyError if it fails."""
    began = time.perf_counter()
    outcome = RequestOutcome(Arrival(0.0, model, 0, 0))
    await stream_chat(client, url, body, outcome, lambda: time.perf_counter() - began, PATIENCE)
    if outcome.error is not None:
        raise StudyError(f"{model} failed on a request: {outcome.error}")
    return outcome
