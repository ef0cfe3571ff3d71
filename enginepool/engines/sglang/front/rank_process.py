"""The rank as the front sees it: a process forked while the front is still without threads."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from config.errors import PoolError
from enginepool import process
from enginepool.engines.sglang.protocol import (
    Answer,
    Command,
    CommandDone,
    CommandFailed,
    Event,
    FromRank,
    RankReady,
    StartRank,
)
from enginepool.engines.sglang.rank.faults import is_device_fault
from enginepool.engines.sglang.rank.main import run_rank

log = logging.getLogger("prism.sglang")

LOOK_INTERVAL = 0.05
"""Seconds between two looks at whether the rank is ending."""


def fork_rank(start: StartRank) -> tuple[int, Connection]:
    """Fork. Returns the rank's process id and the connection to it.

    Raises:
        PoolError: this process has threads, which a fork would not copy.
    """
    if (count := len(os.listdir("/proc/self/task"))) > 1:
        raise PoolError(f"a rank cannot be forked from a process with {count} threads")
    ours, theirs = socket.socketpair()
    front = os.getpid()
    pid = os.fork()
    if pid == 0:
        _run_child(theirs.detach(), front, start)
    theirs.close()
    return pid, Connection(ours.detach())


def _run_child(fd: int, front: int, start: StartRank) -> NoReturn:
    """Never returns, so no object of the front's, its event loop among them, is finalized here."""
    try:
        process.die_with_parent(front)
        signal.set_wakeup_fd(-1)
        process.reset_signals()
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        run_rank(Connection(fd), start)
    except Exception as error:
        log.exception("the rank failed")
        os._exit(process.DEVICE_FAULT_EXIT if is_device_fault(error) else 1)
    os._exit(0)


class RankProcess:
    """Lives on the front's event loop. `died` is set when the process has ended without being told to.

    Answers come in the order in which they were asked for; events, which nobody asked for, go to `on_event`.
    """

    def __init__(self, start: StartRank, on_event: Callable[[Event], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self.pid, self._connection = fork_rank(start)
        self.died: asyncio.Future[str] = self._loop.create_future()
        self._answers: deque[asyncio.Future[Answer]] = deque()
        self.exit_code: int | None = None
        """Once it has died; negative for a signal."""
        self._ready = self.next_answer()
        self._looking = self._loop.call_later(LOOK_INTERVAL, self._look)
        self._loop.add_reader(self._connection.fileno(), self._on_readable)
        os.set_blocking(self._connection.fileno(), True)  # uvloop changes that, and a long message comes in parts

    @property
    def stopped(self) -> bool:
        return process.is_stopped(self.pid)

    async def ready(self) -> int:
        """Wait for its first word; returns the bytes of the device's memory that it holds.

        Raises:
            PoolError: the rank has ended.
        """
        said = await asyncio.shield(self._ready)
        assert isinstance(said, RankReady)
        return said.held

    def send(self, command: Any) -> asyncio.Future[Answer]:
        """To a rank that serves no model. Returns its first answer.

        Raises:
            PoolError: the rank is gone. The future raises it too, if the rank ends meanwhile.
        """
        answer = self.next_answer()
        try:
            self._connection.send(command)
        except OSError as error:
            raise PoolError(f"the rank is gone: {error}") from error
        return answer

    async def tell(self, command: Command, send: Callable[[Command], object] | None = None) -> Any:
        """Have the rank carry `command` out; returns its result. `send` brings it to a rank that serves.

        Raises:
            EngineError, StoreError: it cannot.
            PoolError: the rank has ended.
        """
        if send is None:
            answer = self.send(command)
        else:
            answer = self.next_answer()
            send(command)
        said = await answer
        if isinstance(said, CommandFailed):
            raise said.error
        assert isinstance(said, CommandDone)
        return said.result

    def next_answer(self) -> asyncio.Future[Answer]:
        """What the rank will say, after all that was asked for before; to be asked for before what makes it say so."""
        if self.died.done():
            raise PoolError(self.died.result())
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers.append(answer)
        return answer

    def close(self) -> None:
        """End the process. It keeps nothing that a kill would lose."""
        if self._connection.closed:
            return
        self._looking.cancel()
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        if not self.died.done():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def kill(self) -> None:
        """It has died, as far as anybody else can see."""
        os.kill(self.pid, signal.SIGKILL)

    def _on_readable(self) -> None:
        try:
            message: FromRank = self._connection.recv()
        except (EOFError, OSError):
            _, status = os.waitpid(self.pid, 0)
            self._bury(status)
            return
        if isinstance(message, Event):
            self._on_event(message)
            return
        answer = self._answers.popleft()
        if not answer.done():
            answer.set_result(message)

    def _look(self) -> None:
        """Its end is to be known before the driver has freed its memory, which may take seconds."""
        if (status := process.status_while_exiting(self.pid)) is not None:
            self._bury(status)
            return
        self._looking = self._loop.call_later(LOOK_INTERVAL, self._look)

    def _bury(self, status: int) -> None:
        if self.died.done():
            return
        self._looking.cancel()
        self._loop.remove_reader(self._connection.fileno())
        self.exit_code = os.waitstatus_to_exitcode(status)
        reason = f"the rank ended: status {self.exit_code}"
        self.died.set_result(reason)
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(PoolError(reason))
