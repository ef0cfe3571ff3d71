"""NVIDIA's MPS from outside: the environment of its clients, and what a daemon that runs can be asked."""

from __future__ import annotations

import asyncio
import contextlib
import os

from config.errors import PoolError
from config.gpus import VISIBLE
from enginepool.messages import MpsClient

CONTROL = "nvidia-cuda-mps-control"
"""NVIDIA's program: the daemon itself, and what talks to one."""
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
NO_DAEMON = "/nonexistent"
"""As the pipe folder of who shall be nobody's client: without any, CUDA would look where others may have a daemon."""
TERMINATION = 1.0
"""Seconds that a client's termination may take before it is killed all the same."""


def mps_environment(client: MpsClient | None) -> dict[str, str]:
    """What a process must have in its environment before CUDA starts in it."""
    if client is None:
        return {PIPES: NO_DAEMON}
    return {PIPES: client.pipes, LOGS: client.logs, VISIBLE: client.gpu}


def control_environment(pipes: str) -> dict[str, str]:
    """Of NVIDIA's own programs, which have no use for what is preloaded into the engine."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | {PIPES: pipes}


async def ask(pipes: str, command: str) -> str:
    """What the daemon of the folder `pipes` answers.

    Raises:
        PoolError: there is none, or it does not take the command.
    """
    try:
        asked = await asyncio.create_subprocess_exec(
            CONTROL,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=control_environment(pipes),
        )
    except OSError as error:
        raise PoolError(f"{CONTROL} cannot be run: {error}") from error
    try:
        said, _ = await asked.communicate(f"{command}\n".encode())
    finally:
        if asked.returncode is None:
            asked.kill()
            await asked.wait()
    text = said.decode(errors="replace").strip()
    if asked.returncode != 0:
        raise PoolError(f"{CONTROL}: {text or f'exited with {asked.returncode}'}")
    return text


async def servers(pipes: str) -> list[int]:
    """Process ids of the daemon's servers. Raises PoolError."""
    return _numbers(await ask(pipes, "get_server_list"))


async def terminate(pipes: str, group: int) -> None:
    """Have the clients that are in a process group end their work on the GPU, before they are killed: a kill in the
    middle of it may leave the others undefined, says NVIDIA. Takes `TERMINATION` seconds at most."""
    with contextlib.suppress(PoolError, TimeoutError):
        async with asyncio.timeout(TERMINATION):
            for server in await servers(pipes):
                for client in _numbers(await ask(pipes, f"get_client_list {server}")):
                    if _group(client) == group:
                        await ask(pipes, f"terminate_client {server} {client}")


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdecimal()]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None
