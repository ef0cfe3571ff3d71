"""Loading a model's weights into a segment: the parts shared by all engines.

Each engine that takes weights from the store has a function of type `LoadWeights`, which builds the model with the
engine's own code, lists its tensors and writes them with the functions below.
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
"""Called with bytes done and bytes in total, counting both reading files and writing the segment."""

LoadWeights = Callable[[ModelSpec, Progress], tuple[Manifest, HeldSegment]]
"""Loads a model with its engine's code and writes all its tensors into a new, sealed segment.

Raises StoreError if the checkpoint cannot be read or lacks tensors, HostMemoryShort if memory is short.
"""

READ_SIZE = 4 * 2**20
"""Bytes that a thread reads at a time."""
_OF_THREAD = threading.local()


def threads() -> int:
    """Number of threads for reading and copying; beyond 8, memory and disks hardly get faster."""
    return min(8, len(os.sched_getaffinity(0)))


class Meter:
    """Tracks progress of reading and writing; the files' size stands in for the segment's until that is known."""

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
    """Check for enough host memory to hold `copies` copies of the files' content, the segment included.

    Raises:
        HostMemoryShort: the host, or a cgroup of this process, does not have that much available.
    """
    needed = copies * sum(file.stat().st_size for file in files)
    if needed > (available := host_memory.room()):
        raise HostMemoryShort(f"{model.name}: loading needs {needed} bytes of host memory, {available} are available")


def read_ahead(model: ModelSpec, files: list[Path], meter: Meter) -> None:
    """Read the files into the page cache. This is the slow part, and engines' own loaders report no progress on it.

    Raises:
        StoreError: a file cannot be read.
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
    """Read and discard a piece; returns its bytes. Each thread reuses one buffer, as allocating takes as long as
    reading."""
    if not hasattr(_OF_THREAD, "buffer"):
        _OF_THREAD.buffer = bytearray(READ_SIZE)
    return os.preadv(file, [_OF_THREAD.buffer], start)


def write(
    model: ModelSpec, entries: Iterable[NamedTensor], alignment: int, meter: Meter
) -> tuple[tuple[TensorSpec, ...], tuple[Block, ...], HeldSegment]:
    """Write all tensors into a new segment and seal it; returns tensors, blocks and the segment.

    Raises:
        StoreError: there are no tensors, or one cannot be stored; HostMemoryShort if memory is short.
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
