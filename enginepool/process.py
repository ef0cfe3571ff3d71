"""Process control shared by all processes of the pool: parents, signals, groups, exits and logging. Linux only."""

from __future__ import annotations

import ctypes
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar, cast

from enginepool.lossy_stream import open_lossy

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PF_EXITING = 0x4
_BEFORE = 3
"""Number (from 1) of the first field after the process's name in /proc/PID/stat."""
_libc = ctypes.CDLL(None, use_errno=True)

LOG_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


DEVICE_FAULT = "the GPU failed under it"
"""What `describe_exit` returns for `DEVICE_FAULT_EXIT`."""
DEVICE_FAULT_EXIT = 86
"""Exit code of a worker or rank that can no longer use its GPU."""


Answer = TypeVar("Answer")


def set_up_logging(level: str = "INFO") -> None:
    """Log to stderr without ever blocking on a reader."""
    sys.stderr = cast(TextIO, open_lossy(2))
    logging.basicConfig(stream=sys.stderr, level=level.upper(), format=LOG_FORMAT, force=True)
    logging.captureWarnings(True)


def make_stdout_lossy() -> None:
    """Make stdout lossy too, so that libraries that print cannot block a worker."""
    sys.stdout = cast(TextIO, open_lossy(1))


def set_subreaper(on: bool) -> None:
    """Whether orphaned descendants become children of this process, so that it can wait for them. Raises: OSError."""
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent` ends, even if this process is stopped then. Raises: OSError."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above took effect
        os._exit(0)


def reset_signals() -> None:
    """Restore default signal handlers in a forked child; SIGHUP stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def trim_heap() -> None:
    """Return freed heap memory to the system. glibc keeps free memory below allocated blocks: some MiB per model."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


def call_in_fork(question: Callable[[], Answer]) -> Answer:
    """Call `question` in a forked child and return its result or raise its exception, both of which must be picklable.

    Threads that `question` starts end with the child. To be called from a process without threads.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _answer(question, write_end)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    answer, error = pickle.loads(said)
    if error is not None:
        raise error
    result: Answer = answer
    return result


def _answer(question: Callable[[], object], write_end: int) -> NoReturn:
    said: tuple[Any, Exception | None]
    try:
        said = question(), None
    except Exception as error:  # raised in the parent
        said = None, error
    with open(write_end, "wb") as pipe:
        pipe.write(pickle.dumps(said))
    os._exit(0)


def kill_child(pid: int) -> None:
    """SIGKILL for one of this process's own; it is reaped if it has ended by now, else by the next call."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, os.WNOHANG)


def kill_group(pid: int) -> None:
    """Send SIGKILL to a process group; no error if it is gone already."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def status_while_exiting(pid: int) -> int | None:
    """The wait status of a process that has begun to exit; None while it runs or when it is gone.

    This is known seconds before the parent can wait for the process if a driver has much memory to free. See proc(5):
    field 9, flags, contains the kernel's PF_EXITING then, and field 52, exit_code, is the wait status.
    """
    if not (fields := _stat(pid)):
        return None
    flags, exit_code = int(fields[9 - _BEFORE]), int(fields[52 - _BEFORE])
    return exit_code if flags & _PF_EXITING else None


def is_stopped(pid: int) -> bool:
    """Whether a signal, such as SIGSTOP, has stopped it; by proc(5), state (3) is T then."""
    return _stat(pid)[3 - _BEFORE : 4 - _BEFORE] == [b"T"]


def own_children(session: int) -> set[int]:
    """Process ids of this process's children that are of a session (proc(5): field 6; 4 is the parent), zombies too."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields and (int(fields[4 - _BEFORE]), int(fields[6 - _BEFORE])) == (os.getpid(), session):
            found.add(int(folder.name))
    return found


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat behind the process's name; none if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def describe_exit(info: os.waitid_result) -> str:
    if info.si_code == os.CLD_EXITED and info.si_status == DEVICE_FAULT_EXIT:
        return DEVICE_FAULT
    if info.si_code == os.CLD_EXITED:
        return f"exited with {info.si_status}"
    return f"killed by {signal.Signals(info.si_status).name}"


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"prctl({option})")
