"""`python -m enginepool.mps.keeper`: runs an MPS daemon and ends all its processes when the gateway ends.

A daemon starts a server that is not a child of the gateway and survives if the daemon is killed. So this process adopts
orphaned descendants and stays until none is left. It notices the gateway's end by its standard input, whose other end
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
"""Seconds for the daemon and its server to end by themselves."""


def main() -> None:
    """Run the daemon; returns once all its processes have ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon must outlive the workers, so only the gateway ends it
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
    """Kill all descendants; orphans of killed processes become children of this subreaper in turn."""
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


if __name__ == "__main__":
    main()
