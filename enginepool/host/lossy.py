"""A log that nobody reads: what finds no room in its pipe is lost and counted, and nobody waits.

The pipe is enlarged, so that a reader that is only slow loses nothing. No thread does this: the template forks.
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
"""Bytes that wait for the reader of a pipe; the most that Linux allows everybody."""


class LossyStream(io.TextIOBase):
    """Writes to a file descriptor, or not at all, within the time of a system call. Counts lines that are lost."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._socket = socket.socket(fileno=os.dup(fd)) if stat.S_ISSOCK(os.fstat(fd).st_mode) else None
        self._lost = 0
        self._cut = False

    def write(self, text: str) -> int:
        """Never raises: whoever logs can do nothing about it."""
        note = f"{self._lost} lines of the log are lost: nobody read them\n" if self._lost else ""
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
        """It stays open as long as its process."""

    def _put(self, text: str) -> bool:
        """Whether there was room; a line that is cut by lack of it is ended before the next."""
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
        """How much of it was taken; None for nothing. What is gone for good takes everything."""
        try:
            if self._socket is not None:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            _, writable, _ = select.select((), (self._fd,), (), 0)
            return os.write(self._fd, data) if writable else None
        except BlockingIOError:
            return None
        except OSError:
            return len(data)


def let_nobody_wait(fd: int) -> LossyStream:
    """A stream for `fd`, of which not even C code waits for its reader any more where it is a pipe or a terminal.

    It gets a description of its own: a flag on the old one would be seen by the shell too.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):  # a pipe of another user's: then each write is preceded by a look
            again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(again, fd)
            os.close(again)
    if stat.S_ISFIFO(mode):
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    return LossyStream(fd)
