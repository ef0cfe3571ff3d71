"""Work for one client in a thread of its own, so that nobody else waits for it; it can be ended from outside.

What is ended gets `Ended` raised in it at its next step of Python, by CPython's PyThreadState_SetAsyncExc: an endless
loop of a template ends at once, a call into C when it returns.
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
"""Bytes of a request's body from which on it is prepared aside."""
AGAIN = 0.1
"""Seconds after which `Ended` is raised anew in work that goes on."""


class Ended(BaseException):
    """No Exception: code that goes on after whatever fails must not go on after this."""


class TookTooLong(Exception):
    """The work had no time left."""


class Aside(Generic[T]):
    """Begins at once, in the caller's context. `done` is of the caller's loop."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self._over = False
        self._lock = threading.Lock()
        self.done: asyncio.Future[T] = self._loop.create_future()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="aside", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Have the work end, as soon as it can."""
        with self._lock:
            if self._over:
                return
            assert self._thread.ident is not None
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(Ended))
        self._loop.call_later(AGAIN, self.end)

    def _run(self) -> None:
        """Root of the thread. `Ended` may come anywhere in it, until it says that it is over."""
        result: T | None = None
        error: BaseException | None = Ended()
        try:
            result, error = self._work(), None
        except BaseException as raised:  # it is the caller's
            error = raised
        finally:
            while not self._over:
                with contextlib.suppress(Ended), self._lock:
                    self._over = True
        told = False
        while not told:
            with contextlib.suppress(Ended):  # the last one may still be on its way
                self._tell(result, error)
                told = True

    def _tell(self, result: T | None, error: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._settle, result, error)

    def _settle(self, result: T | None, error: BaseException | None) -> None:
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
            self.done.exception()  # whoever has ended the work need not ask
        else:
            self.done.set_result(result)  # type: ignore[arg-type]


async def aside(work: Callable[[], T], seconds: float, gone: asyncio.Event) -> T:
    """Wait for `work`, which runs in a thread of its own.

    Raises:
        TookTooLong: it was ended after `seconds`.
        Ended: it was ended, since `gone` was set.
        Whatever `work` raises.
    """
    it = Aside(work)
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
    """Wait until `done` is, or `event` is set, or `seconds` are over."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((done, waiting), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
