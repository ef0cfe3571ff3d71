"""Streams chats from an OpenAI-compatible server and records arrival times."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import aiohttp
import msgspec
from msgspec import Struct

from bench.load.outcomes import ClientSlo, RequestOutcome
from gateway.routing import DEVICE_HEADER, WORKER_HEADER
from simulator.errors import StudyError

Clock = Callable[[], float]
"""Seconds from the start of the run."""
CONNECT_TIMEOUT = 10.0


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)


class _Usage(Struct):
    prompt_tokens: int
    completion_tokens: int


class _Failure(Struct):
    message: str = ""
    type: str | None = None
    code: str | int | None = None


class _Event(Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Failure | None = None


class _ListedSlo(Struct):
    """Prism's extension of /v1/models entries, in seconds."""

    ttft_s: float | None = None
    tpot_s: float | None = None


class _ListedModel(Struct):
    id: str
    slo: _ListedSlo = msgspec.field(default_factory=_ListedSlo)


class _ModelList(Struct):
    data: list[_ListedModel]


_decode_event = msgspec.json.Decoder(_Event).decode


@asynccontextmanager
async def session(api_key: str | None) -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without connection limits, so that requests leave when they are due."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as made:
        yield made


async def list_models(client: aiohttp.ClientSession, url: str) -> dict[str, ClientSlo]:
    """The server's models, with the objectives it states.

    Raises:
        StudyError: no server answers, or it does not list models.
    """
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT), client.get(f"{url}/v1/models") as response:
            body = await response.read()
            if response.status != HTTPStatus.OK:
                raise StudyError(f"{url}/v1/models answers {response.status}: {body[:200]!r}")
        listed = msgspec.json.decode(body, type=_ModelList).data
    except (aiohttp.ClientError, OSError) as error:
        raise StudyError(f"no server answers at {url}: {error or type(error).__name__}") from error
    except msgspec.MsgspecError as error:
        raise StudyError(f"{url}/v1/models is not a list of models: {error}") from error
    return {model.id: ClientSlo(model.slo.ttft_s, model.slo.tpot_s) for model in listed}


def chat_body(model: str, prompt: str, max_tokens: int, *, ignore_eos: bool = False) -> bytes:
    """The body of a streamed chat with usage at its end; with `ignore_eos`, it always produces `max_tokens`.

    `ignore_eos` is not part of OpenAI's API, but SGLang, vLLM and Prism's engines accept it.
    """
    fields = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return msgspec.json.encode(fields | {"ignore_eos": True} if ignore_eos else fields)


async def stream_chat(
    client: aiohttp.ClientSession, url: str, body: bytes, outcome: RequestOutcome, clock: Clock, patience: float
) -> None:
    """Send `body` and record the result in `outcome`, within `patience` seconds. Raises only when cancelled."""
    try:
        async with asyncio.timeout(patience):
            outcome.error = await _stream(client, url, body, outcome, clock)
    except TimeoutError:
        outcome.error = "timeout"
    except aiohttp.ClientConnectorError:
        outcome.error = "no connection"
    except (aiohttp.ClientError, OSError):
        outcome.error = "disconnected"
    except msgspec.MsgspecError:
        outcome.error = "not an OpenAI event"
    outcome.ended = clock()


async def _stream(
    client: aiohttp.ClientSession, url: str, body: bytes, outcome: RequestOutcome, clock: Clock
) -> str | None:
    headers = {"Content-Type": "application/json"}
    async with client.post(f"{url}/v1/chat/completions", data=body, headers=headers) as response:
        if response.status != HTTPStatus.OK:
            return f"http {response.status}"
        outcome.worker = response.headers.get(WORKER_HEADER)
        outcome.device = response.headers.get(DEVICE_HEADER)
        rest = b""
        async for received in response.content.iter_any():
            at = clock()
            *lines, rest = (rest + received).split(b"\n")
            for line in lines:
                if line.startswith(b"data: [DONE]"):
                    return None
                failure = _note(line, outcome, at)
                if failure is not None:
                    return failure
        return "cut off"


def _note(line: bytes, outcome: RequestOutcome, at: float) -> str | None:
    """Record one line of the stream; returns the kind of failure if it reports one."""
    if not line.startswith(b"data: "):
        return None
    event = _decode_event(line[6:])
    if event.error is not None:
        return f"error event: {event.error.code or event.error.type or event.error.message[:60]}"
    if any(choice.delta.content or choice.delta.reasoning_content for choice in event.choices):
        outcome.token(at)
    if event.usage is not None:
        outcome.prompt_tokens = event.usage.prompt_tokens
        outcome.completion_tokens = event.usage.completion_tokens
    return None
