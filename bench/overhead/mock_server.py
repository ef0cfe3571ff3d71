"""A plain aiohttp server with the same answers as Prism's simulated worker, byte for byte except for id and time.

It is the baseline for Prism's overhead and the upstream of its peers: `python -m bench.overhead.mock_server`.
"""

from __future__ import annotations

import argparse
import asyncio

import msgspec
import uvloop
from aiohttp import web
from msgspec import Struct

from enginepool.engines.simulated import BYTES_PER_TOKEN, DEFAULT_TOKENS, WORDS
from enginepool.openai.answers import (
    EVENT_STREAM,
    JSON,
    ChatAnswer,
    Choice,
    CompletionAnswer,
    OpenAIAnswer,
    Usage,
)
from simulator.command_line import Parser

TPOT = web.AppKey("tpot", float)
MODELS = web.AppKey("models", tuple[str, ...])


class MockMessage(Struct):
    content: str


class StreamOptions(Struct):
    include_usage: bool = False


class MockRequest(Struct):
    """The parameters that affect the answer. Others are ignored, since peers add parameters of their own."""

    model: str
    messages: list[MockMessage] = []
    prompt: str = ""
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None

    @property
    def tokens(self) -> int:
        return self.max_completion_tokens or self.max_tokens or DEFAULT_TOKENS

    @property
    def usage(self) -> Usage:
        texts = [message.content for message in self.messages] or [self.prompt]
        return Usage(sum(1 + len(text) // BYTES_PER_TOKEN for text in texts), self.tokens)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


_decode = msgspec.json.Decoder(MockRequest).decode


def make_app(models: tuple[str, ...], tpot: float) -> web.Application:
    """The server. `tpot` is in seconds per streamed token; 0 sends everything at once."""
    app = web.Application()
    app[TPOT] = tpot
    app[MODELS] = models
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/completions", complete)
    app.router.add_get("/v1/models", list_models)
    for probe in ("/health", "/health_generate", "/ready"):
        app.router.add_get(probe, healthy)
    for probe in ("/model_info", "/get_model_info", "/server_info", "/get_server_info"):
        app.router.add_get(probe, model_info)
    return app


async def chat(request: web.Request) -> web.StreamResponse:
    body = _decode(await request.read())
    return await answer(request, body, ChatAnswer(body.model, body.include_usage))


async def complete(request: web.Request) -> web.StreamResponse:
    body = _decode(await request.read())
    return await answer(request, body, CompletionAnswer(body.model, body.include_usage))


async def answer(request: web.Request, body: MockRequest, formatter: OpenAIAnswer) -> web.StreamResponse:
    if body.stream:
        return await stream(request, body, formatter)
    text = "".join(WORDS[position % len(WORDS)] for position in range(body.tokens))
    return web.Response(body=formatter.whole([Choice(0, text, "length")], body.usage), content_type=JSON)


async def stream(request: web.Request, body: MockRequest, formatter: OpenAIAnswer) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": EVENT_STREAM})
    await response.prepare(request)
    await response.write(formatter.begin(0) or b"")
    tpot = request.app[TPOT]
    loop = asyncio.get_running_loop()
    due = loop.time()
    for position in range(body.tokens):
        await response.write(formatter.piece(0, WORDS[position % len(WORDS)]))
        due += tpot
        if tpot:
            await asyncio.sleep(due - loop.time())
    await response.write(formatter.finish(0, "length") + formatter.end(body.usage))
    return response


async def list_models(request: web.Request) -> web.Response:
    entries = [{"id": name, "object": "model", "created": 0, "owned_by": "bench"} for name in request.app[MODELS]]
    return web.json_response({"object": "list", "data": entries})


async def healthy(request: web.Request) -> web.Response:
    return web.Response()


async def model_info(request: web.Request) -> web.Response:
    """What sglang-router queries from a worker before it sends requests."""
    name = request.app[MODELS][0]
    return web.json_response({"model_path": name, "served_model_name": name, "is_generation": True})


def arguments() -> argparse.Namespace:
    parser = Parser(
        prog="bench.overhead.mock_server", description="A plain server with the answers of Prism's simulated worker."
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", default="bench-a,bench-b", help="comma-separated names")
    parser.add_argument("--tpot", type=float, default=0.0, help="seconds per streamed token")
    return parser.parse_args()


def main() -> None:
    chosen = arguments()
    web.run_app(
        make_app(tuple(chosen.models.split(",")), chosen.tpot),
        host="127.0.0.1",
        port=chosen.port,
        print=None,
        access_log=None,
        backlog=4096,
        handler_cancellation=True,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
