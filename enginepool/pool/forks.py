"""Forks children from the template process and handles their sockets, channels and exits."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from config.errors import ChannelClosed, PoolError
from config.registry import PoolConfig
from enginepool import process
from enginepool.channel import Channel
from enginepool.engines.kinds import kind_of
from enginepool.messages import Exit, FromTemplate, MpsClient, Spawn, Spawned, TemplateReady

log = logging.getLogger("prism.pool")

In = TypeVar("In")

CONNECT_TIMEOUT = 30.0
"""Seconds from the fork to the child's connection."""
TEMPLATE_TIMEOUT = 300.0
"""Seconds for the template's imports, which are slow from a cold disk."""
SPAWN_TIMEOUT = 10.0
"""Seconds for a fork; a template that takes longer is considered stuck and replaced."""
ORPHAN_INTERVAL = 0.05
"""Seconds between checks for a dead child's descendants, which may take a while to free a GPU's memory."""
EXIT_TIMEOUT = 1.0
"""Seconds for the template to end by itself."""


class Child(Generic[In]):
    """A forked process and its connection. `exited` resolves to how it ended, once it is reaped."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.channel: Channel[In]
        self._cause = ""
        self._receiver: Callable[[In], None] | None = None
        self._early: list[In] = []
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[str] = self._loop.create_future()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        """Resolves once its whole process group is gone, including a rank that takes a while to free GPU memory."""
        self._pidfd = os.pidfd_open(pid)
        self._loop.add_reader(self._pidfd, self._reap)

    @property
    def connected(self) -> bool:
        return hasattr(self, "channel")

    def receive(self, receiver: Callable[[In], None]) -> None:
        """Pass every message to `receiver`, beginning with those that arrived before this call."""
        early, self._early = self._early, []
        for message in early:
            receiver(message)
        self._receiver = receiver

    def take(self, message: In) -> None:
        """Handle a message, which may arrive before `receive` was called."""
        if self._receiver is None:
            self._early.append(message)
        else:
            self._receiver(message)

    def end(self, cause: str = "") -> None:
        """Kill its process group, if it has not ended; `cause`, if given, becomes the result of `exited`."""
        if not self.exited.done():
            self._cause = self._cause or cause
            process.kill_group(self.pid)

    async def kill(self) -> None:
        """Kill its process group and wait until the child is reaped."""
        self.end()
        await asyncio.shield(self.exited)

    def disconnected(self, error: Exception | None) -> None:
        """End the child, as it is of no use without a connection. An OSError says no more than that it was lost."""
        self.end("" if error is None or isinstance(error, OSError) else str(error))

    def _reap(self) -> None:
        if os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        # Kill its descendants before reaping it: until then its process group id cannot be reused by others.
        process.kill_group(self.pid)
        info = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        assert info is not None
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self.connected:
            self.channel.close()
        self.exited.set_result(self._cause or process.describe_exit(info))
        self._reap_orphans()

    def _reap_orphans(self) -> None:
        """Wait for the rest of its process group, killed too and by now adopted by this process, a subreaper."""
        try:
            os.waitid(os.P_PGID, self.pid, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            self.gone.set_result(None)
            return
        self._loop.call_later(ORPHAN_INTERVAL, self._reap_orphans)


class ForkServer:
    def __init__(self, pool: PoolConfig, run_dir: Path) -> None:
        self._pool = pool
        self._run_dir = run_dir
        self._serials = itertools.count(1)
        self._template: _TemplateProcess | None = None
        self._starting: asyncio.Lock = asyncio.Lock()
        self._stopped = False

    async def start(self) -> None:
        """Start the template.

        Raises:
            PoolError: the template does not start.
        """
        await self._get_template()

    async def stop(self) -> None:
        """End the template, after which nothing can be forked. Its children keep running."""
        self._stopped = True
        if self._template is not None:
            await self._template.stop()

    @property
    def template_pid(self) -> int | None:
        return self._template.pid if self._template is not None else None

    async def fork(self, role: str, name: str, device: str, union: Any, mps: MpsClient | None = None) -> Child[In]:
        """Fork a connected process in `role`; call its `receive` next. A template that dies meanwhile is replaced once.

        Raises:
            PoolError: the template or the child does not start.
            ChannelClosed: the replaced template died too.
        """
        with contextlib.suppress(ChannelClosed):
            return await self._fork(role, name, device, union, mps)
        return await self._fork(role, name, device, union, mps)

    async def _fork(self, role: str, name: str, device: str, union: Any, mps: MpsClient | None) -> Child[In]:
        template = await self._get_template()
        serial = next(self._serials)
        path = self._run_dir / str(serial)  # short, since the kernel limits socket paths to 107 bytes
        try:
            with _listen(path) as listener:
                spawn = Spawn(serial, role, name, str(path), device, mps)
                child: Child[In] = Child(name, await template.spawn(spawn))
                await _connect(child, listener, union)
                return child
        except OSError as error:
            raise PoolError(f"{name} cannot be started: {error}") from error
        finally:
            path.unlink(missing_ok=True)

    async def _get_template(self) -> _TemplateProcess:
        async with self._starting:
            if self._stopped:
                raise PoolError("the pool has stopped")
            if self._template is not None and self._template.dead:
                await self._template.stop()
                self._template = None
            if self._template is None:
                self._template = await _TemplateProcess.start(self._pool, self._run_dir)
            return self._template


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(1)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


async def _connect(child: Child[In], listener: socket.socket, union: Any) -> None:
    """Wait for the child to connect; it is killed if it does not. Raises: PoolError."""
    try:
        connection = await accept_from(child, listener)
        _, child.channel = await asyncio.get_running_loop().create_connection(
            lambda: Channel[In](union, child.take, child.disconnected), sock=connection
        )
    finally:
        if not child.connected:
            await child.kill()


async def accept_from(child: Child[In], listener: socket.socket) -> socket.socket:
    """Wait for the child's connection and accept it. Raises: PoolError.

    Not by `loop.sock_accept`, which loses a connection that arrives while it is being cancelled: here the reader only
    wakes the waiting coroutine, which then accepts.
    """
    loop = asyncio.get_running_loop()
    connecting = asyncio.Event()
    loop.add_reader(listener, connecting.set)
    waiting = loop.create_task(connecting.wait())
    try:
        await asyncio.wait((waiting, child.exited), timeout=CONNECT_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        return listener.accept()[0]
    except BlockingIOError:
        child.end(f"no connection within {CONNECT_TIMEOUT:g} s of its fork")
        raise PoolError(f"{child.name} did not connect: {await child.exited}") from None
    finally:
        loop.remove_reader(listener)
        waiting.cancel()


class _TemplateProcess:
    """The gateway's handle of the template process. A dead template is replaced at the next fork."""

    def __init__(self, process_: asyncio.subprocess.Process) -> None:
        self._process = process_
        self._channel: Channel[FromTemplate]
        self._ready: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting: dict[int, asyncio.Future[int]] = {}
        self._told: set[int] = set()
        """Process ids of its forks, which others wait for."""
        self._closed = asyncio.Event()
        self._burial = asyncio.get_running_loop().create_task(self._bury())

    @classmethod
    async def start(cls, pool: PoolConfig, run_dir: Path) -> _TemplateProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with contextlib.ExitStack() as on_failure, theirs:
            on_failure.callback(ours.close)
            started = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "enginepool.pool.template",
                str(theirs.fileno()),
                str(os.getpid()),
                msgspec.json.encode(pool).decode(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                # TMPDIR in the run folder, so that leftovers of killed processes are swept along with it.
                env={**os.environ, **kind_of(pool).environment(pool, os.environ), "TMPDIR": str(run_dir)},
            )
            on_failure.pop_all()
        self = cls(started)
        loop = asyncio.get_running_loop()
        try:
            _, self._channel = await loop.create_connection(
                lambda: Channel[FromTemplate](FromTemplate, self._on_message, self._on_closed), sock=ours
            )
            await self._wait_ready()
        finally:
            if not self._is_up:
                await self._kill()
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def dead(self) -> bool:
        return self._channel.closed

    @property
    def _is_up(self) -> bool:
        return self._ready.done() and not self._ready.cancelled() and self._ready.exception() is None

    async def spawn(self, command: Spawn) -> int:
        """Fork a child; returns its process id.

        Raises:
            ChannelClosed: the template is gone, or was stuck and has been killed.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[command.serial] = answer
        try:
            self._channel.send(command)
            await asyncio.wait((answer,), timeout=SPAWN_TIMEOUT)
        except asyncio.CancelledError:
            answer.add_done_callback(_end_unwanted)  # the fork may happen nevertheless
            raise
        if not answer.done():
            log.warning("the template did not fork within %g s; starting a new one", SPAWN_TIMEOUT)
            await self._kill()
        return await answer

    async def stop(self) -> None:
        if not self._channel.closed:
            self._channel.send(Exit())
            self._channel.close()
        try:
            await asyncio.wait_for(self._process.wait(), EXIT_TIMEOUT)
        except TimeoutError:
            await self._kill()
        await self._burial

    async def _kill(self) -> None:
        self._ready.cancel()  # nobody waits for it any more
        if hasattr(self, "_channel"):
            self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._burial

    async def _wait_ready(self) -> None:
        try:
            seconds = await asyncio.wait_for(self._ready, TEMPLATE_TIMEOUT)
        except (TimeoutError, ChannelClosed) as error:
            raise PoolError(f"the template process did not start: {error}") from error
        log.info("template ready, imports took %.1f s", seconds)

    def _on_message(self, message: FromTemplate) -> None:
        match message:
            case TemplateReady():
                if not self._ready.done():
                    self._ready.set_result(message.seconds)
            case Spawned():
                self._told.add(message.pid)
                self._waiting.pop(message.serial).set_result(message.pid)

    def _on_closed(self, error: Exception | None) -> None:
        gone = ChannelClosed(f"the template ended: {error or 'connection closed'}")
        if not self._ready.done():
            self._ready.set_exception(gone)
        for answer in self._waiting.values():
            answer.set_exception(gone)
        self._waiting.clear()
        self._closed.set()

    async def _bury(self) -> None:
        """Root of the task that ends what a template was about to fork when it ended, and has told nobody of.

        The gateway adopts that and is the only one who can wait for it.
        """
        await self._closed.wait()
        await self._process.wait()
        while untold := process.own_children(session=self.pid) - self._told:
            for pid in untold:
                process.kill_child(pid)
            await asyncio.sleep(ORPHAN_INTERVAL)


def _end_unwanted(answer: asyncio.Future[int]) -> None:
    """Kill a child that was forked after its caller was cancelled."""
    if answer.exception() is None:
        Child("unwanted", answer.result()).end()
