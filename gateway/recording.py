"""Records the scheduler's events and decisions for `prism replay`.

A recording holds numbers, names and reasons, but none of the text of requests and answers.
"""

from __future__ import annotations

import contextlib
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import msgspec

from scheduler.actions import AnyAction
from scheduler.events import AnyEvent
from scheduler.replay.recorded import Header, Step, encoder
from scheduler.scheduler import Scheduler

log = logging.getLogger("prism.gateway")

INTERVAL = 1.0
"""Seconds between two writes."""
BUFFER = 64 * 2**20
"""Bytes that may wait for a slow disk before the recording is abandoned."""


class Recorder:
    """Wraps a scheduler. Lines are encoded at once and written in batches by a separate thread.

    Any failure ends the recording with one line in the log, and affects nothing else.
    """

    def __init__(self, path: Path, header: Header, scheduler: Scheduler) -> None:
        self._path = path
        self._scheduler = scheduler
        self._buffer = bytearray()
        self._written = 0.0
        self._writing: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recording")
        self._file: BinaryIO | None = None
        try:
            self._file = path.open("wb")
        except OSError as error:
            self._give_up(error.strerror or str(error))
        self._add(header)

    def handle(self, event: AnyEvent, now: float) -> list[AnyAction]:
        """`Scheduler.handle`, recorded."""
        actions: list[AnyAction] | None = None
        try:
            actions = self._scheduler.handle(event, now)
            return actions
        finally:
            self._add(Step(now, event, actions))
            if now - self._written >= INTERVAL:
                self._written = now
                self._write()

    def close(self) -> None:
        """Write the remaining lines, and wait until that is done."""
        if self._writing is not None:
            self._take_result()
        self._write()
        if self._writing is not None:
            self._take_result()
        self._end()
        self._thread.shutdown()

    def _add(self, line: Header | Step) -> None:
        if self._file is None:
            return
        try:
            self._buffer += encoder.encode(line) + b"\n"
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
            self._give_up(str(error))

    def _write(self) -> None:
        """Hand the lines so far to the thread, unless it is still writing the previous batch."""
        if self._writing is not None and self._writing.done():
            self._take_result()
        if self._file is None or not self._buffer:
            return
        if self._writing is None:
            batch, self._buffer = self._buffer, bytearray()
            self._writing = self._thread.submit(_append, self._file, batch)
        elif len(self._buffer) > BUFFER:
            self._give_up("the disk is too slow")

    def _take_result(self) -> None:
        """Take the result of the last write, waiting for it if necessary."""
        assert self._writing is not None
        error = self._writing.exception()
        self._writing = None
        if error is not None and self._file is not None:
            self._give_up(str(error))

    def _give_up(self, reason: str) -> None:
        log.error("recording to %s has ended: %s", self._path, reason)
        self._buffer.clear()
        self._end()

    def _end(self) -> None:
        """Close the file once the current write is done."""
        if self._file is not None:
            self._thread.submit(_close, self._file)
            self._file = None


def _append(file: BinaryIO, batch: bytearray) -> None:
    file.write(batch)
    file.flush()


def _close(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # What could not be written was reported when it was tried.
        file.close()
