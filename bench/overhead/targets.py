"""The servers under test: the plain one, Prism, and peers."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import yaml

from bench.errors import BadReply
from bench.overhead.peers import PEERS_BIN
from bench.subjects.processes import Server, free_port, running
from bench.subjects.rawclient import Address, Caller, chat_request
from simulator.errors import StudyError

MODEL = "bench-a"
OTHER_MODEL = "bench-b"
PROMPT = "What does a gate do when the model behind it sleeps?"
START_TIMEOUT = 120.0
"""Timeout in seconds; LiteLLM's imports alone take ten."""


@dataclass(frozen=True)
class Timing:
    """The timing of the model behind a server, in seconds."""

    ttft: float = 0.0
    tpot: float = 0.0


@dataclass(frozen=True)
class Target:
    """A running server."""

    name: str
    address: Address
    server: Server


class ReferenceAnswer(msgspec.Struct, frozen=True):
    """The parts of an answer that must be equal for all servers of the same model."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Launch(Protocol):
    """Starts a peer in front of the plain server at `upstream`, with its files in `folder`."""

    def __call__(self, upstream: Address, folder: Path) -> AbstractAsyncContextManager[Target]: ...


@asynccontextmanager
async def plain(timing: Timing) -> AsyncIterator[Target]:
    """Run the plain server."""
    address = Address("127.0.0.1", free_port())
    command = [
        sys.executable,
        "-m",
        "bench.overhead.mock_server",
        "--port",
        str(address.port),
        "--tpot",
        str(timing.tpot),
    ]
    with tempfile.TemporaryDirectory(prefix="prism-bench-") as folder:
        async with running("direct", command, Path(folder)) as server:
            yield await answering("direct", address, server)


@asynccontextmanager
async def prism(timing: Timing, folder: Path) -> AsyncIterator[Target]:
    """Run Prism with one simulated worker for two models."""
    address = Address("127.0.0.1", free_port())
    registry = folder / "prism.yaml"
    registry.write_text(yaml.safe_dump(prism_registry(timing, address, folder)))
    command = [sys.executable, "-m", "gateway.cli", "serve", registry]
    async with running("prism", command, folder) as server:
        if timing.ttft:
            await server.until_ready(lambda: listens(address), START_TIMEOUT)
            yield Target("prism", address, server)
        else:
            yield await answering("prism", address, server)


def prism_registry(timing: Timing, address: Address, folder: Path) -> dict[str, object]:
    """The contents of the registry file."""
    slo = {"ttft": "1h", "tpot": "1s"}
    return {
        "gateway": {"host": address.host, "port": address.port, "admin_socket": str(folder / "admin.sock")},
        "pool": {
            "engine": "simulated",
            "workers_per_device": 1,
            "max_running": 8192,
            "engine_args": {"ttft": f"{timing.ttft}s", "tpot": f"{timing.tpot}s", "activation": "10ms"},
        },
        "scheduler": {"policy": "lru", "idle_timeout": "1h"},
        "models": [{"name": MODEL, "slo": slo}, {"name": OTHER_MODEL, "slo": slo}],
    }


@asynccontextmanager
async def sglang_router(upstream: Address, folder: Path) -> AsyncIterator[Target]:
    """Run sglang-router with round robin over one worker, its cheapest mode."""
    address = Address("127.0.0.1", free_port())
    command = [PEERS_BIN / "python", "-m", "sglang_router.launch_router", "--worker-urls", upstream.url]
    command += ["--host", address.host, "--port", str(address.port), "--policy", "round_robin", "--log-level", "warn"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    command += ["--shutdown-grace-period-secs", "1"]
    async with running("sglang-router", command, folder) as server:
        yield await answering("sglang-router", address, server)


@asynccontextmanager
async def litellm(upstream: Address, folder: Path) -> AsyncIterator[Target]:
    """Run LiteLLM's proxy with one worker process and no logging."""
    address = Address("127.0.0.1", free_port())
    behind = {"model": f"openai/{MODEL}", "api_base": f"{upstream.url}/v1", "api_key": "none"}
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": [{"model_name": MODEL, "litellm_params": behind}]}))
    command = [PEERS_BIN / "litellm", "--config", config, "--host", address.host, "--port", str(address.port)]
    command += ["--num_workers", "1", "--telemetry", "False"]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    async with running("litellm", command, folder, env) as server:
        yield await answering("litellm", address, server)


async def answering(name: str, address: Address, server: Server) -> Target:
    """The target, once it answers correctly. Raises: StudyError."""
    await server.until_ready(lambda: answers(address), START_TIMEOUT)
    return Target(name, address, server)


async def listens(address: Address) -> bool:
    caller = Caller()
    try:
        await caller.connect(address)
    except OSError:
        return False
    caller.close()
    return True


async def answers(address: Address) -> bool:
    """Whether a small chat is answered with status 200."""
    caller = Caller()
    try:
        await caller.connect(address)
    except OSError:
        return False
    try:
        reply = await caller.call(small_chat(address))
    finally:
        caller.close()
    return reply is not None and reply.status == 200


def small_chat(address: Address) -> bytes:
    """The request used in all measurements without streaming."""
    return chat_request(address, MODEL, prompt=PROMPT, max_tokens=8, stream=False)


async def answer_of(target: Target) -> ReferenceAnswer:
    """The target's answer to `small_chat`. Raises: StudyError."""
    caller = Caller()
    await caller.connect(target.address)
    try:
        reply = await caller.call(small_chat(target.address))
    finally:
        caller.close()
    if reply is None or reply.status != 200:
        raise StudyError(f"{target.name} refuses a small chat: {reply}")
    try:
        return msgspec.convert(_flat(msgspec.json.decode(reply.body)), ReferenceAnswer)
    except (msgspec.MsgspecError, LookupError, TypeError) as error:
        raise BadReply(f"{target.name} answers a small chat with {reply.body[:200]!r}") from error


def _flat(whole: dict[str, Any]) -> dict[str, Any]:
    choice = whole["choices"][0]
    return {"text": choice["message"]["content"], "finish_reason": choice["finish_reason"], **whole["usage"]}


LAUNCHES: dict[str, Launch] = {"sglang-router": sglang_router, "litellm": litellm}
