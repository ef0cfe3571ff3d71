"""The worker process: one connection to the gateway and one engine with one model at a time."""

from __future__ import annotations

import asyncio
import logging
import os
import time

import psutil
import uvloop

from config.errors import ChannelClosed, EngineError, StoreError
from config.registry import PoolConfig
from enginepool.channel import Channel
from enginepool.engine import EngineLoad, Output
from enginepool.engines.kinds import kind_of
from enginepool.messages import (
    Abort,
    Activate,
    Blank,
    Exit,
    Offer,
    Park,
    Ping,
    Pong,
    SetKvLimit,
    Spawn,
    Submit,
    ToWorker,
    Withdraw,
    WorkerActivated,
    WorkerBlanked,
    WorkerFailed,
    WorkerParked,
    WorkerReady,
    WorkerStats,
)

STATS_INTERVAL = 1.0
"""Seconds between reports."""


def run_worker(spawn: Spawn, pool: PoolConfig) -> None:
    """Serve until the gateway says Exit or is gone."""
    uvloop.run(_Worker(spawn, pool).run())


class _Worker:
    def __init__(self, spawn: Spawn, pool: PoolConfig) -> None:
        self._log = logging.getLogger(f"prism.{spawn.name}")
        self._spawn = spawn
        self._pool = pool
        self._lifecycle: asyncio.Queue[Activate | Park | Blank] = asyncio.Queue()
        self._ended = asyncio.Event()
        self._process = psutil.Process()
        self._rates = _Rates()

    async def run(self) -> None:
        self._channel = await self._connect()
        self._engine = kind_of(self._pool).create(self._pool, self._spawn, self._emit)
        await self._engine.start()
        self._channel.send(WorkerReady(os.getpid(), self._engine.name, self._engine.held))
        tasks = [asyncio.create_task(self._run_lifecycle()), asyncio.create_task(self._report())]
        await self._ended.wait()
        for task in tasks:
            task.cancel()
        await self._engine.close()

    async def _connect(self) -> Channel[ToWorker]:
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(self._new_channel, self._spawn.socket)
        return channel

    def _new_channel(self) -> Channel[ToWorker]:
        return Channel(ToWorker, self._on_message, self._on_closed, self._on_pressure)

    def _on_message(self, message: ToWorker) -> None:
        match message:
            case Submit():
                self._engine.submit(message)
            case Abort():
                self._engine.abort(message.request)
            case Ping():
                self._channel.send(Pong(message.serial))
            case SetKvLimit():
                self._engine.set_kv_limit(message.revision, message.nbytes)
            case Offer():
                self._engine.offer(message.model, message.segment)
            case Withdraw():
                self._engine.withdraw(message.model)
            case Activate() | Park() | Blank():
                self._lifecycle.put_nowait(message)
            case Exit():
                self._ended.set()

    def _on_closed(self, error: Exception | None) -> None:
        if not self._ended.is_set():
            self._log.warning("the gateway is gone: %s", error or "connection closed")
        self._ended.set()

    def _on_pressure(self, paused: bool) -> None:
        self._engine.hold(paused)

    def _emit(self, output: Output) -> None:
        if not self._channel.closed:
            self._channel.send(output)

    async def _run_lifecycle(self) -> None:
        """Root of the task that activates, parks and blanks, one after the other."""
        while True:
            command = await self._lifecycle.get()
            try:
                await self._change(command)
            except ChannelClosed:
                return
            except Exception:
                self._log.exception("%s failed; this worker ends", type(command).__name__)
                os._exit(1)

    async def _change(self, command: Activate | Park | Blank) -> None:
        match command:
            case Activate():
                await self._activate(command)
            case Park():
                model = await self._engine.park()
                self._channel.send(WorkerParked(model, self._engine.held))
            case Blank():
                phases = await self._engine.blank()
                self._channel.send(WorkerBlanked(self._engine.held, phases))

    async def _activate(self, command: Activate) -> None:
        name = command.model.name
        try:
            phases = await self._engine.activate(
                command.model,
                command.manifest,
                command.segment,
                command.verify,
                kv_limit=command.kv_limit,
                kv_revision=command.kv_revision,
            )
        except (EngineError, StoreError) as error:
            self._log.warning("activating %s failed: %s", name, error)
            self._channel.send(WorkerFailed(name, str(error), self._engine.held))
        else:
            self._channel.send(WorkerActivated(name, phases, self._engine.held, self._engine.copy_seconds))

    async def _report(self) -> None:
        """Root of the task that reports the engine's load."""
        last: WorkerStats | None = None
        while not self._channel.closed:
            stats = self._stats()
            if stats != last:
                self._channel.send(stats)
                last = stats
            await asyncio.sleep(STATS_INTERVAL)

    def _stats(self) -> WorkerStats:
        load = self._engine.load
        prefill_rate, decode_rate = self._rates.since_last(load)
        return WorkerStats(
            running=load.running,
            waiting=load.waiting,
            kv_bytes=load.kv_bytes,
            kv_mapped=max(load.kv_mapped, load.kv_bytes),
            prompt_tokens=load.prompt_tokens,
            output_tokens=load.output_tokens,
            prefill_rate=prefill_rate,
            decode_rate=decode_rate,
            rss=self._process.memory_info().rss,
            batch=load.batch,
            device_used=load.device_used,
            process_used=load.process_used,
            held=load.held,
        )


class _Rates:
    """Tokens per second between one report and the next."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._prompt_tokens = self._output_tokens = 0

    def since_last(self, load: EngineLoad) -> tuple[float, float]:
        """Tokens prefilled and decoded per second since the last call."""
        now = time.monotonic()
        seconds = max(now - self._at, 1e-3)
        prefilled, decoded = load.prompt_tokens - self._prompt_tokens, load.output_tokens - self._output_tokens
        self._at, self._prompt_tokens, self._output_tokens = now, load.prompt_tokens, load.output_tokens
        return prefilled / seconds, decoded / seconds
