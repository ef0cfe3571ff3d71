"""`python -m enginepool.mps.keeper`: runs an MPS daemon, and ends all that it has started when the gateway ends.

A daemon has a server, which is no child of the gateway's and outlives a daemon that is killed. So this process adopts
what its descendants leave, and stays until none is left. The gateway holds the other end of its standard input, which
the kernel closes even after a `kill -9`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

import psutil

from enginepool import process
from enginepool.mps.control import CONTROL

QUIT_TIMEOUT = 1.0
"""Seconds that the daemon and its server get to end by themselves."""


def main() -> None:
    """Returns once nothing of the daemon is left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the gateway, after the workers
    process.set_subreaper(True)
    keeper = os.getpid()
    daemon = subprocess.Popen(
        [CONTROL, "-f"], stdin=subprocess.DEVNULL, preexec_fn=lambda: process.die_with_parent(keeper)
    )
    try:
        _wait_for_either(sys.stdin.fileno(), os.pidfd_open(daemon.pid))
        if daemon.poll() is None:
            _quit(daemon)
    finally:
        _end_descendants()


def _wait_for_either(*files: int) -> None:
    poller = select.poll()
    for file in files:
        poller.register(file, select.POLLIN | select.POLLHUP)
    poller.poll()


def _quit(daemon: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([CONTROL], input=b"quit\n", stdout=subprocess.DEVNULL, timeout=QUIT_TIMEOUT, check=False)
        daemon.wait(QUIT_TIMEOUT)


def _end_descendants() -> None:
    """Those of a killed one become this process's own children."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


if __name__ == "__main__":
    main()
