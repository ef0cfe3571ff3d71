"""Folders that no other user can change: what lies in them, workers' sockets among it, is this user's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from config.errors import PoolError

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Make `folder`, readable for its owner only, unless it is there.

    Raises:
        PoolError: another user could swap what is in it, or one of the folders above it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check(folder, _OTHERS_WRITE, {os.getuid(), 0})
    for above in folder.resolve().parents:
        _check(above, stat.S_IWOTH, {os.getuid(), 0})


def check_own(folder: Path) -> None:
    """
    Raises:
        PoolError: it is no folder of this user's alone: mode 0700, no link.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700:
        raise PoolError(f"{folder} is not a folder of this user's alone (mode 0700)")


def _check(folder: Path, writable: int, owners: set[int]) -> None:
    """In a sticky folder, such as /tmp, others may add files, but not move or remove one that is not theirs."""
    found = folder.stat()
    if found.st_uid not in owners:
        raise PoolError(
            f"{folder} belongs to the user with the id {found.st_uid}, who could swap the sockets in it; "
            "set gateway.admin_socket to a path in a folder of your own"
        )
    if found.st_mode & writable and not found.st_mode & stat.S_ISVTX:
        mode = stat.S_IMODE(found.st_mode)
        raise PoolError(
            f"{folder} can be written by other users (mode {mode:04o}), who could swap the sockets in it; "
            f"chmod go-w it, or set gateway.admin_socket to a path in a folder of your own"
        )
