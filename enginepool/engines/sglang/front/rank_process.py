"""The front's handle of its rank, a process forked while the front has no threads yet."""

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
from enginepool.engines.sglang.faults import is_device_fault
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
from enginepool.engines.sglang.rank.main import run_rank

log = logging.getLogger("prism.sglang")

LOOK_INTERVAL = 0.05
"""Seconds between checks for whether the rank is exiting."""


def fork_rank(start: StartRank) -> tuple[int, Connection]:
    """Fork a rank; returns its process id and the connection to it.

    Raises:
        PoolError: this process has threads, which a fork does not copy.
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
    """Run the rank in the forked child. Never returns, so that none of the front's objects is finalized here."""
    try:
        process.die_with_parent(front)
        signal.set_wakeup_fd(-1)  # it belongs to the front's event loop
        process.reset_signals()
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        run_rank(Connection(fd), start)
    except Exception as error:
        log.exception("the rank failed")
        os._exit(process.DEVICE_FAULT_EXIT if is_device_fault(error) else 1)
    os._exit(0)


class RankProcess:
    """Lives on the front's event loop. `died` is set when the process ends without having been told to.

    Answers come in the order of the commands; unsolicited events go to `on_event`.
    """

    def __init__(self, start: StartRank, on_event: Callable[[Event], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_event = on_event
        self.pid, self._connection = fork_rank(start)
        self.died: asyncio.Future[str] = self._loop.create_future()
        self._answers: deque[asyncio.Future[Answer]] = deque()
        self.exit_code: int | None = None
        """Set once it has died; negative for a signal."""
        self._ready = self.next_answer()
        self._looking = self._loop.call_later(LOOK_INTERVAL, self._look)
        self._loop.add_reader(self._connection.fileno(), self._on_readable)
        # uvloop's add_reader makes it non-blocking, but `Connection.recv` has to block for the rest of a long message.
        os.set_blocking(self._connection.fileno(), True)

    @property
    def stopped(self) -> bool:
        return process.is_stopped(self.pid)

    async def ready(self) -> int:
        """Wait until the rank is ready; returns the bytes of device memory that it holds.

        Raises:
            PoolError: the rank has ended.
        """
        said = await asyncio.shield(self._ready)
        assert isinstance(said, RankReady)
        return said.held

    def send(self, command: Any) -> asyncio.Future[Answer]:
        """Send a command to a rank that serves no model; returns a future of its first answer.

        Raises:
            PoolError: the rank is gone. The future raises it too if the rank ends before it answers.
        """
        answer = self.next_answer()
        try:
            self._connection.send(command)
        except OSError as error:
            raise PoolError(f"the rank is gone: {error}") from error
        return answer

    async def tell(self, command: Command, send: Callable[[Command], object] | None = None) -> Any:
        """Have the rank execute `command`; returns the result. `send` delivers it to a rank that serves a model.

        Raises:
            EngineError, StoreError: the command failed.
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
        """A future of the rank's next answer after those already expected. To be called before triggering the answer.

        Raises:
            PoolError: the rank has ended.
        """
        if self.died.done():
            raise PoolError(self.died.result())
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._answers.append(answer)
        return answer

    def close(self) -> None:
        """Kill the process, which holds nothing worth saving."""
        if self._connection.closed:
            return
        self._looking.cancel()
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        if not self.died.done():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def kill(self) -> None:
        """Kill the process and treat it like any other death: `died` is set."""
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
        """Detect that the rank is exiting before the driver has freed its memory, which may take seconds."""
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
