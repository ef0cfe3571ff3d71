"""Runs one function over many inputs, in this process or several; results are in the order of the inputs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from enginepool.process import die_with_parent
from simulator.errors import StudyError
from simulator.progress import say_again

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")

Report = Callable[[str], None]
Work = Callable[[S, T, Report], R]

REFRESH = 0.2
"""Seconds between progress updates."""
LINE = 150
"""Maximum length of a progress line, in characters."""


def run_each(
    work: Work[S, T, R],
    shared: S,
    tasks: Sequence[T],
    *,
    jobs: int = 1,
    done: Callable[[R], None] = lambda result: None,
) -> list[R]:
    """Call `work(shared, task, report)` for every task, in `jobs` processes; `work` must be picklable.

    `shared` is sent to each process once. `report` shows the progress of a task; `done` is called in this process with
    each result as it arrives. An interrupt stops everything.

    Raises:
        StudyError: a process died.
        Exception: whatever `work` raises; the other tasks are abandoned.
    """
    if min(jobs, len(tasks)) <= 1:
        return [_here(work, shared, task, done) for task in tasks]
    try:
        with _crew(work, shared, tasks, jobs) as (futures, reports):
            _follow(futures, reports, done)
            return [future.result() for future in futures]
    except BrokenProcessPool as error:
        raise StudyError("a process died before its work was done; did it run out of memory?") from error


def _here(work: Work[S, T, R], shared: S, task: T, done: Callable[[R], None]) -> R:
    result = work(shared, task, say_again)
    done(result)
    return result


@contextmanager
def _crew(
    work: Work[S, T, R], shared: S, tasks: Sequence[T], jobs: int
) -> Iterator[tuple[list[Future[R]], SimpleQueue[tuple[int, str]]]]:
    """Start processes that work on the tasks; those still running on exit are terminated."""
    # Spawned, not forked, so that they inherit neither threads nor event loops of this process.
    context = multiprocessing.get_context("spawn")
    reports: SimpleQueue[tuple[int, str]] = context.SimpleQueue()
    desk = _Desk(work, shared, reports)
    crew = ProcessPoolExecutor(min(jobs, len(tasks)), context, initializer=_sit_down, initargs=(desk, os.getpid()))
    futures: list[Future[R]] = []
    try:
        with _interrupts_held():
            futures += [crew.submit(_work_on, number, task) for number, task in enumerate(tasks)]
        yield futures, reports
    finally:
        if not all(future.done() for future in futures):
            for child in multiprocessing.active_children():
                child.terminate()
        crew.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which a terminal sends to all: only this process is to act on it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(futures: Sequence[Future[R]], reports: SimpleQueue[tuple[int, str]], done: Callable[[R], None]) -> None:
    """Show progress until all tasks are done. Raises: what the first failed task raised."""
    numbers = {future: number for number, future in enumerate(futures)}
    pending, at = set(futures), dict[int, str]()
    while pending:
        ended, pending = wait(pending, REFRESH, FIRST_COMPLETED)
        while not reports.empty():
            number, text = reports.get()
            at[number] = text
        for future in sorted(ended, key=numbers.__getitem__):
            at.pop(numbers[future], None)
            done(future.result())
        say_again(f"{len(futures) - len(pending)} of {len(futures)} done; {'; '.join(at.values())}"[:LINE])


# In a process of the crew.


@dataclass(frozen=True)
class _Desk:
    work: Work[Any, Any, Any]
    shared: Any
    reports: SimpleQueue[tuple[int, str]]


_desk: _Desk


def _sit_down(desk: _Desk, parent: int) -> None:
    global _desk
    die_with_parent(parent)
    _desk = desk


def _work_on(number: int, task: Any) -> Any:
    said = 0.0

    def report(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= REFRESH:
            said = time.monotonic()
            _desk.reports.put((number, text))

    return _desk.work(_desk.shared, task, report)
