"""Client side of NVIDIA MPS: the environment of MPS clients, and commands to a running MPS daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os

from config.errors import PoolError
from config.gpus import VISIBLE
from enginepool.messages import MpsClient

CONTROL = "nvidia-cuda-mps-control"
"""NVIDIA's program, both the daemon and the client that sends it commands."""
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
NO_DAEMON = "/nonexistent"
"""Pipe folder for processes that must not be MPS clients: if it were unset, CUDA would try the default folder, where
somebody else's daemon may run."""
TERMINATION = 1.0
"""Seconds that terminating a client may take before it is killed anyway."""


def mps_environment(client: MpsClient | None) -> dict[str, str]:
    """The variables a process needs before CUDA is initialised in it."""
    if client is None:
        return {PIPES: NO_DAEMON}
    return {PIPES: client.pipes, LOGS: client.logs, VISIBLE: client.gpu}


def control_environment(pipes: str) -> dict[str, str]:
    """The environment for NVIDIA's own programs, without the libraries preloaded for the engine."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | {PIPES: pipes}


async def ask(pipes: str, command: str) -> str:
    """Send `command` to the daemon of the folder `pipes` and return its answer.

    Raises:
        PoolError: no daemon is running, or it rejects the command.
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
    """Process ids of the daemon's servers. Raises: PoolError."""
    return _numbers(await ask(pipes, "get_server_list"))


async def terminate(pipes: str, group: int) -> None:
    """Make the MPS clients in a process group end their GPU work, in at most `TERMINATION` seconds. To be called before
    killing them: according to NVIDIA, killing a client in the middle of its work may corrupt the others."""
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
