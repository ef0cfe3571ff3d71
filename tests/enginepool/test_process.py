"""What processes of the pool do to watch each other."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from config.errors import EngineError
from enginepool.process import call_in_fork, is_stopped, status_while_exiting


@contextmanager
def child(status: int | None) -> Iterator[int]:
    """A process that has ended with `status` and was not waited for, or that goes on."""
    pid = os.fork()
    if pid == 0:
        if status is None:
            signal.pause()
        os._exit(status or 0)
    try:
        if status is not None:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_process_that_goes_on_is_not_exiting() -> None:
    with child(None) as pid:
        assert status_while_exiting(pid) is None


def test_how_a_process_ends_is_known_before_it_is_waited_for() -> None:
    with child(86) as pid:
        status = status_while_exiting(pid)
        assert status is not None
        assert os.waitstatus_to_exitcode(status) == 86


def test_so_is_the_signal_that_ends_it() -> None:
    with child(None) as pid:
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        status = status_while_exiting(pid)
        assert status is not None
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def test_a_process_that_is_gone_is_not_exiting() -> None:
    with child(0) as pid:
        pass
    assert status_while_exiting(pid) is None


def test_a_process_is_stopped_until_it_is_continued() -> None:
    with child(None) as pid:
        assert not is_stopped(pid)
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        assert is_stopped(pid)
        os.kill(pid, signal.SIGCONT)
        os.waitid(os.P_PID, pid, os.WCONTINUED)
        assert not is_stopped(pid)
    assert not is_stopped(pid)


def _pid_with_a_thread() -> int:
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    return os.getpid()


def test_what_a_fork_starts_ends_with_it() -> None:
    before = threading.active_count()
    assert call_in_fork(_pid_with_a_thread) != os.getpid()
    assert threading.active_count() == before


def _fail() -> None:
    raise EngineError("there is no GPU")


def test_what_a_fork_raises_is_raised_here() -> None:
    with pytest.raises(EngineError, match="there is no GPU"):
        call_in_fork(_fail)
