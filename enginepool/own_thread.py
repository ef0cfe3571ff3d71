"""Runs work for one client in a thread of its own that can be ended from outside, so that nobody else waits for it.

Ending the thread raises `ThreadEnded` at its next Python bytecode, by CPython's PyThreadState_SetAsyncExc: an endless
loop in a template ends at once, a call into C when it returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

LARGE = 64 * 1024
"""Bodies above this many bytes are prepared in a thread of their own."""
AGAIN = 0.1
"""Seconds between repetitions of `ThreadEnded` in work that does not end."""


class ThreadEnded(BaseException):
    """Not an Exception, so that code which catches all exceptions and continues does not catch this."""


class TookTooLong(Exception):
    """The work exceeded its time limit."""


class OwnThread(Generic[T]):
    """Starts the work at once, in the caller's context. `done` belongs to the caller's event loop."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._over = False
        self._lock = threading.Lock()
        self.done: asyncio.Future[T] = self._loop.create_future()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="own-thread", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Make the work end as soon as possible."""
        with self._lock:
            if self._over:
                return
            assert self._thread.ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(self._thread.ident), ctypes.py_object(ThreadEnded)
            )
        self._loop.call_later(AGAIN, self.end)

    def _run(self) -> None:
        """Root of the thread. `ThreadEnded` may be raised anywhere in it until `_over` is set."""
        result: T | None = None
        error: BaseException | None = ThreadEnded()
        try:
            result, error = self._work(), None
        except BaseException as raised:  # passed on to the caller
            error = raised
        finally:
            # From here on `end` raises nothing more. It may do so while we wait for the lock, hence the loop.
            while not self._over:
                with contextlib.suppress(ThreadEnded), self._lock:
                    self._over = True
        told = False
        while not told:
            with contextlib.suppress(ThreadEnded):  # one raised before `_over` was set may still be pending
                self._tell(result, error)
                told = True

    def _tell(self, result: T | None, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
            self.done.exception()  # mark it as retrieved: whoever ended the work may not ask for it
        else:
            self.done.set_result(result)  # type: ignore[arg-type]


async def run_in_own_thread(work: Callable[[], T], seconds: float, gone: asyncio.Event) -> T:
    """Run `work` in a thread of its own and return its result.

    Raises:
        TookTooLong: the work was ended after `seconds`.
        ThreadEnded: the work was ended because `gone` was set.
        Whatever `work` raises.
    """
    it = OwnThread(work)
    try:
        await first_of(it.done, gone, seconds)
    finally:
        in_time = it.done.done()
        it.end()
    if not in_time:
        await asyncio.wait((it.done,))
        if not gone.is_set():
            raise TookTooLong
    return it.done.result()


async def first_of(done: asyncio.Future[T], event: asyncio.Event, seconds: float) -> None:
    """Wait until `done` is done, `event` is set, or `seconds` have passed."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((done, waiting), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
