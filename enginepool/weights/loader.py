"""Writing a model's weights into a segment: what loading has in common for all engines.

Each engine that takes weights from the store has a function of the type `LoadWeights`, which makes the model with the
engine's own code, lists its tensors and has them written here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from config.errors import HostMemoryShort, StoreError
from enginepool.host import host_memory
from enginepool.messages import Block, Manifest, ModelSpec, TensorSpec
from enginepool.weights import segment
from enginepool.weights.layout import Layout, NamedTensor
from enginepool.weights.segment import HeldSegment

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all: of reading the files and of writing the segment."""

LoadWeights = Callable[[ModelSpec, Progress], tuple[Manifest, HeldSegment]]
"""Loads a model with its engine's code and writes every tensor of it into a new, sealed segment.

Raises StoreError if the checkpoint cannot be read or lacks tensors, HostMemoryShort if there is no room.
"""

READ_SIZE = 4 * 2**20
"""Bytes of a file that one thread reads at a time."""
_OF_THREAD = threading.local()


def threads() -> int:
    """How many a loader uses: memory and disks give more to several, up to a point."""
    return min(8, len(os.sched_getaffinity(0)))


class Meter:
    """Progress over both halves; until the segment's size is known, the files' size stands for it."""

    def __init__(self, progress: Progress, files: list[Path]) -> None:
        self._progress = progress
        self._reading = sum(file.stat().st_size for file in files)
        self._total = 2 * self._reading
        self._done = 0
        progress(0, self._total)

    def expect(self, nbytes: int) -> None:
        self._total = self._reading + nbytes

    def add(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress(min(self._done, self._total), self._total)

    def finish(self) -> None:
        if self._done < self._total:
            self.add(self._total - self._done)


def expect_room(model: ModelSpec, files: list[Path], copies: int) -> None:
    """Look before reading: `copies` of the files' content will be in memory at a time, the segment being one.

    Raises:
        HostMemoryShort: the host, or a cgroup of this process, has not so much to give.
    """
    needed = copies * sum(file.stat().st_size for file in files)
    if needed > (available := host_memory.room()):
        raise HostMemoryShort(f"{model.name}: loading needs {needed} bytes of host memory, {available} are available")


def read_ahead(model: ModelSpec, files: list[Path], meter: Meter) -> None:
    """Bring the files into the page cache: the slow part, and the engines' own loaders tell nothing of it.

    Raises:
        StoreError: one cannot be read.
    """
    try:
        with ThreadPoolExecutor(threads(), "reading") as readers:
            for file in files:
                with file.open("rb", buffering=0) as opened:
                    starts = range(0, os.fstat(opened.fileno()).st_size, READ_SIZE)
                    for count in readers.map(partial(_read, opened.fileno()), starts):
                        meter.add(count)
    except OSError as error:
        raise StoreError(f"{model.name}: {error}") from error


def _read(file: int, start: int) -> int:
    """Bytes that there were. They are dropped: each thread has one buffer, since getting memory takes as long again."""
    if not hasattr(_OF_THREAD, "buffer"):
        _OF_THREAD.buffer = bytearray(READ_SIZE)
    return os.preadv(file, [_OF_THREAD.buffer], start)


def write(
    model: ModelSpec, entries: Iterable[NamedTensor], alignment: int, meter: Meter
) -> tuple[tuple[TensorSpec, ...], tuple[Block, ...], HeldSegment]:
    """Put all tensors into a new segment of `model`, and seal it.

    Raises:
        StoreError: there are no tensors, or one cannot be stored; HostMemoryShort if there is no room.
    """
    try:
        layout = Layout(entries, alignment)
    except StoreError as error:
        raise StoreError(f"{model.name}: {error}") from error
    if layout.nbytes == 0:
        raise StoreError(f"{model.name}: the model in {model.path} has no tensors")
    meter.expect(layout.nbytes)
    target = segment.create(model.name, layout.nbytes)
    try:
        with target.view() as view:
            blocks = layout.write(view, meter.add, threads())
        held = target.seal()
    finally:
        target.close()
    meter.finish()
    return layout.specs(), blocks, held
