"""Output streams that never block: text that does not fit into the pipe is dropped and counted.

The pipe is enlarged so that a slow reader loses nothing. There is no writer thread, because the template forks.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import select
import socket
import stat

PIPE_SIZE = 2**20
"""Capacity of a pipe in bytes: the maximum that Linux allows unprivileged users."""


class LossyStream(io.TextIOBase):
    """Writes to a file descriptor without blocking, and counts the lines that are dropped."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(os.fstat(fd).st_mode) else None
        self._lost = 0
        self._cut = False

    def write(self, text: str) -> int:
        """Write or drop `text`. Never raises, since the caller could do nothing about it."""
        note = f"{self._lost} log lines were dropped: nobody read them\n" if self._lost else ""
        if self._put(note):
            self._lost = 0 if note else self._lost
            if self._put(text):
                return len(text)
        self._lost += text.count("\n")
        return len(text)

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """The stream stays open for the life of the process."""

    def _put(self, text: str) -> bool:
        """Write `text`; returns whether all of it fitted. A truncated line is ended before the next one."""
        data = ("\n" * self._cut + text if text else "").encode(errors="backslashreplace")
        began = False
        while data:
            written = self._write_some(data[: select.PIPE_BUF])
            if written is None:
                self._cut = self._cut or began
                return False
            data, began = data[written:], True
            self._cut = False
        return True

    def _write_some(self, data: bytes) -> int | None:
        """Returns the number of bytes written, None if there was no room. A broken descriptor swallows everything."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            _, writable, _ = select.select((), (self._fd,), (), 0)
            return os.write(self._fd, data) if writable else None
        except BlockingIOError:
            return None
        except OSError:
            return len(data)


def open_lossy(fd: int) -> LossyStream:
    """A stream for `fd`. If `fd` is a pipe or terminal it is made non-blocking, so that C code does not block either.

    It is reopened for that: setting the flag on the existing file description would affect the shell too.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):  # another user's pipe cannot be reopened; `select` before writes must do
            again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(again, fd)
            os.close(again)
    if stat.S_ISFIFO(mode):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return LossyStream(fd)
