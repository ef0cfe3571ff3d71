"""The HTTP routes: OpenAI's, health and metrics. The answers themselves are made elsewhere."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web
from aiohttp.typedefs import Middleware

from config.errors import RequestError
from enginepool.messages import Head
from enginepool.openai.answers import JSON
from enginepool.openai.errors import error_body, server_error
from enginepool.openai.routes import INFERENCE_ROUTES
from gateway import status
from gateway.core import Gateway
from gateway.http.bodies import Bodies
from gateway.http.body_shape import check_shape
from gateway.http.browsers import Browsers
from gateway.http.connections import TOO_MANY, is_guest
from gateway.live import LiveRequest
from gateway.routing import DEVICE_HEADER, WORKER_HEADER, read_model, read_slo
from gateway.sse import STREAMING, open_stream

log = logging.getLogger("prism.http")

FINISH_TIMEOUT = 30.0
"""Seconds a client has to read the rest of a complete answer."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

FOR_GUESTS = frozenset({"/health", "/ready", "/metrics"})
"""Paths that are served even when there is no room for another client."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def build_app(gateway: Gateway) -> web.Application:
    config = gateway.registry.gateway
    browsers = Browsers(config)
    app = web.Application(middlewares=[_front(browsers)])
    browsers.watch(app)
    routes = _Routes(gateway)
    for path in sorted(INFERENCE_ROUTES):
        app.router.add_post(path, routes.infer)
    app.router.add_get("/v1/models", routes.models)
    app.router.add_get("/v1/models/{id:.+}", routes.model)
    app.router.add_get("/health", routes.health)
    app.router.add_get("/ready", routes.ready)
    app.router.add_get("/metrics", routes.metrics)
    return app


class _Routes:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._limits = gateway.registry.gateway.limits
        self._bodies = Bodies(self._limits)

    async def infer(self, request: web.Request) -> web.StreamResponse:
        body = await self._bodies.read(request)
        await check_shape(body, self._limits)
        model = self._gateway.catalog.get(read_model(body))
        slo = read_slo(request.headers, model.slo.ttft)
        live = self._gateway.admit(model.name, request.path, body, slo)
        try:
            answer = await live.answer
            if isinstance(answer, Head):
                return await self._relay(request, live, answer)
            return web.Response(
                body=answer.body, status=answer.status, content_type=answer.content_type, headers=self._route(live)
            )
        finally:
            self._gateway.release(live)

    def _route(self, live: LiveRequest) -> dict[str, str]:
        """Headers that name the worker and device that answer."""
        if live.worker is None:
            return {}
        device = self._gateway.pool.workers[live.worker].device
        return {WORKER_HEADER: str(live.worker), DEVICE_HEADER: device}

    async def _relay(self, request: web.Request, live: LiveRequest, head: Head) -> web.StreamResponse:
        limit = self._limits.stream_buffer
        response, stream = await open_stream(request, head.status, head.content_type, limit, self._route(live))
        live.attach(stream)
        await stream.finished
        try:
            await asyncio.wait_for(response.write_eof(), FINISH_TIMEOUT)
        except (TimeoutError, ConnectionError):  # a client may disconnect as soon as it has the last event
            stream.drop()
        return response

    async def models(self, request: web.Request) -> web.Response:
        return _json(self._gateway.catalog.cards())

    async def model(self, request: web.Request) -> web.Response:
        return _json(self._gateway.catalog.card(request.match_info["id"]))

    async def health(self, request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        readiness = status.readiness(self._gateway)
        return _json(readiness, 200 if readiness.ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._gateway.metrics.render(), headers={"Content-Type": METRICS_TYPE})


def _front(browsers: Browsers) -> Middleware:
    """The only middleware: each one costs every request some microseconds."""

    @web.middleware
    async def front(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Root of a request's task."""
        try:
            preflight = browsers.check(request)
            if is_guest(request):
                return await _serve_guest(request, handler)
            return preflight or await handler(request)
        except RequestError as error:
            return _error(error)
        except web.HTTPNotFound:
            return _error(RequestError(404, f"There is no route {request.method} {request.path}.", code="unknown_url"))
        except web.HTTPMethodNotAllowed as error:
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.path} takes {allowed}, not {request.method}."
            return _error(RequestError(405, message, code="method_not_allowed"), {"Allow": allowed})
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            if STREAMING in request:
                raise  # the headers are sent: breaking the connection is the only signal left
            return _error(server_error("The gateway failed on this request."))

    return front


async def _serve_guest(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Serve a request on a connection beyond the limit, then close the connection."""
    response = await handler(request) if request.path in FOR_GUESTS else _error(TOO_MANY)
    response.force_close()
    return response


def _json(data: object, status_code: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), status=status_code, content_type=JSON)


def _error(error: RequestError, headers: dict[str, str] | None = None) -> web.Response:
    response = web.Response(body=error_body(error), status=error.status, content_type=JSON, headers=headers)
    if error.retry_after is not None:
        response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    return response
