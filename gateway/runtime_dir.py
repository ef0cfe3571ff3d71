"""The files a running gateway owns: its lock, its admin socket, a folder for workers' sockets and dummy models' files.

The lock is the kernel's (flock), so it is gone with the process however that ended; whoever gets it sweeps what a
killed predecessor left.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from config.errors import PoolError
from enginepool.mps.daemon import end_stale
from gateway.private import check_own, make_private


class RuntimeDir:
    """Everything lies beside the admin socket. Use as a context manager."""

    def __init__(self, admin_socket: Path) -> None:
        self.admin_socket = admin_socket
        self.workers = admin_socket.with_name(admin_socket.name + ".d")
        self.models = self.workers / "models"
        """Made by whoever puts something there."""
        self._lock_path = admin_socket.with_name(admin_socket.name + ".lock")
        self._lock = -1

    def __enter__(self) -> RuntimeDir:
        """
        Raises:
            PoolError: another gateway runs here, something else is in the way, another user could change what lies
                here, or the folder cannot be written.
        """
        try:
            make_private(self.admin_socket.parent)
            self._lock = self._take_lock()
            self._refuse_to_sweep_what_is_no_socket()
            self._sweep()
            self.workers.mkdir(mode=0o700)
            check_own(self.workers)
        except BlockingIOError as error:
            raise PoolError(f"another gateway uses the admin socket {self.admin_socket}") from error
        except OSError as error:
            raise PoolError(f"cannot use {self.admin_socket.parent} for sockets: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._sweep()
        self._lock_path.unlink(missing_ok=True)
        os.close(self._lock)

    def _take_lock(self) -> int:
        """The lock's file descriptor. A file that its last owner has just removed is no lock any more."""
        while True:
            lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._lock_path.stat().st_ino == os.fstat(lock).st_ino:
                    return lock
            except FileNotFoundError:
                pass
            except BlockingIOError:
                os.close(lock)
                raise
            os.close(lock)

    def _refuse_to_sweep_what_is_no_socket(self) -> None:
        if self.admin_socket.exists() and not self.admin_socket.is_socket():
            self._lock_path.unlink()
            os.close(self._lock)
            raise PoolError(f"the admin socket {self.admin_socket} is something else: no socket, so it is left alone")

    def _sweep(self) -> None:
        end_stale(self.workers)
        shutil.rmtree(self.workers, ignore_errors=True)
        self.admin_socket.unlink(missing_ok=True)
