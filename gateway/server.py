"""Runs one gateway process from start to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Callable
from pathlib import Path

import uvloop
from aiohttp import web
from msgspec.structs import replace

from config.engines import facts_of
from config.errors import PoolError
from config.registry import Registry
from config.units import format_size
from enginepool.host import host_memory
from gateway.admin import AdminServer
from gateway.core import Gateway
from gateway.dummy_models import with_folders
from gateway.http.connections import Connections, Site, raise_file_limit
from gateway.http.routes import build_app
from gateway.runtime_dir import RuntimeDir

log = logging.getLogger("prism.gateway")


def serve(
    registry: Registry,
    *,
    validate: bool = False,
    record: Path | None = None,
    on_listening: Callable[[str], None] = print,
) -> None:
    """Run until SIGTERM, SIGINT or `prism stop`. `on_listening` gets the URL once requests are accepted.

    The scheduler checks its invariants with `validate`; its events and decisions are written to the file `record`.

    Raises:
        PoolError: something that it needs cannot be had: the port, the admin socket, the template.
    """
    # aiohttp logs each client's malformed request there; what goes wrong here is logged in `gateway.http`.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until somebody listens to it
    with RuntimeDir(registry.gateway.admin_socket) as runtime:
        served = _within_host(with_folders(registry, runtime.models))
        files = raise_file_limit()
        uvloop.run(_Server(served, files, runtime, validate, record, on_listening).run())


def _within_host(registry: Registry) -> Registry:
    """The registry, with a budget for weights no larger than the memory of this machine or container."""
    budget, most = registry.weight_store.host_memory, host_memory.most()
    if budget <= most or not facts_of(registry.pool).needs_weights:
        return registry
    log.warning("weight_store.host_memory is %s, of %s that there are", format_size(budget), format_size(most))
    return replace(registry, weight_store=replace(registry.weight_store, host_memory=most))


class _Server:
    def __init__(
        self,
        registry: Registry,
        files: int,
        runtime: RuntimeDir,
        validate: bool,
        record: Path | None,
        on_listening: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._files = files
        self._runtime = runtime
        self._validate = validate
        self._record = record
        self._on_listening = on_listening

    async def run(self) -> None:
        self._stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        gateway = Gateway(self._registry, self._runtime.workers, validate=self._validate, record=self._record)
        admin = AdminServer(gateway, self._stopping.set)
        runner = web.AppRunner(
            build_app(gateway),
            handler_cancellation=True,
            handle_signals=False,
            shutdown_timeout=1.0,
        )
        grace = 0.0
        try:
            await self._listen(runner)
            if await self._start(gateway):
                grace = self._registry.gateway.grace
                await admin.start(self._runtime.admin_socket)
                gc.freeze()
                self._on_listening(_url(runner))
                await self._stopping.wait()
            log.info("stopping: %d requests in flight", len(gateway.live))
        finally:
            await gateway.stop(grace)
            await runner.cleanup()
            await admin.stop()
        log.info("stopped")

    def _reload(self) -> None:
        log.warning("SIGHUP: nothing is reloaded yet; the registry is read at the start only")

    async def _start(self, gateway: Gateway) -> bool:
        """Start the pool; returns False if told to stop meanwhile, since its imports may take a while."""
        starting = asyncio.create_task(gateway.start())
        stopping = asyncio.create_task(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return False
        await starting
        return True

    async def _listen(self, runner: web.AppRunner) -> None:
        await runner.setup()
        host, port = self._registry.gateway.host, self._registry.gateway.port
        assert runner.server is not None
        connections = Connections(runner.server, self._registry, self._files)
        try:
            await Site(runner, connections, host, port).start()
        except OSError as error:
            raise PoolError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
