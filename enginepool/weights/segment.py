"""Weight segments: anonymous shared memory that one process writes and seals and others map read-only.

A segment is a memfd. It has no name in any file system, so nothing can be left behind in /dev/shm, and the kernel frees
it with its last holder, however that process ended.
"""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
from contextlib import suppress
from types import TracebackType

from config.errors import HostMemoryShort, StoreError
from enginepool.host import host_memory
from enginepool.messages import SegmentRef

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_NAME_LIMIT = 200
"""Bytes. The kernel allows 249 and shows the name in /proc/<pid>/maps."""


class HeldSegment:
    """A segment kept alive by an open file descriptor, without mapping it."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self._fd = fd
        self.nbytes = nbytes
        self.ref = SegmentRef(pid=os.getpid(), fd=fd, nbytes=nbytes)

    def close(self) -> None:
        """Release the segment. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> HeldSegment:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class WritableSegment:
    """A new segment, mapped for writing until `seal`."""

    def __init__(self, fd: int, nbytes: int) -> None:
        self._fd = fd
        self._map = mmap.mmap(fd, nbytes)
        self.nbytes = nbytes

    def view(self) -> memoryview:
        """The segment's memory. All views and slices of them must be released before `seal`."""
        return memoryview(self._map)

    def seal(self) -> HeldSegment:
        """Make the content immutable for all processes.

        Raises:
            StoreError: a view is still in use, or the kernel refuses.
        """
        _unmap(self._map)
        try:
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            raise StoreError(f"cannot seal a segment of {self.nbytes} bytes: {error}") from error
        fd, self._fd = self._fd, -1
        return HeldSegment(fd, self.nbytes)

    def close(self) -> None:
        """Drop an unsealed segment, which is freed with its last view; does nothing after `seal`."""
        if self._fd >= 0:
            with suppress(BufferError):  # frames in the traceback of the current error may hold views
                self._map.close()
            os.close(self._fd)
            self._fd = -1


class MappedSegment:
    """A sealed segment, mapped read-only into this process."""

    def __init__(self, mapped: mmap.mmap) -> None:
        self._map = mapped
        self.nbytes = len(mapped)

    def view(self) -> memoryview:
        """The segment's memory, read-only. It must stay referenced as long as the memory is used."""
        return memoryview(self._map)

    def close(self) -> None:
        """Unmap the segment. May be called twice.

        Raises:
            StoreError: a view is still in use.
        """
        _unmap(self._map)


def create(name: str, nbytes: int) -> WritableSegment:
    """Create a segment of `nbytes` for the model `name` and allocate all its memory.

    Raises:
        HostMemoryShort: the host does not have that much memory available.
    """
    # Memory must be allocated up front: if it ran out later, a write would kill the process with SIGBUS.
    if nbytes > (available := host_memory.room()):
        raise HostMemoryShort(f"{name}: the weights need {nbytes} bytes of host memory, {available} are available")
    label = f"prism-{name}".encode()[:_NAME_LIMIT].decode(errors="ignore")
    fd = os.memfd_create(label, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.posix_fallocate(fd, 0, nbytes)
        return WritableSegment(fd, nbytes)
    except OSError as error:
        os.close(fd)
        raise HostMemoryShort(f"{name}: the weights need {nbytes} bytes of host memory: {error}") from error


def adopt(ref: SegmentRef) -> HeldSegment:
    """Hold a segment of another process on this host, so that it outlives that process.

    Raises:
        StoreError: the process or segment is gone, or it is not a sealed segment of this size.
    """
    path = f"/proc/{ref.pid}/fd/{ref.fd}"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StoreError(f"cannot open the segment at {path}: {error}") from error
    held = HeldSegment(fd, ref.nbytes)
    if not _is_sealed(fd) or os.fstat(fd).st_size != ref.nbytes:
        held.close()
        raise StoreError(f"{path} is not a sealed segment of {ref.nbytes} bytes")
    return held


def open_segment(ref: SegmentRef) -> MappedSegment:
    """Map a segment read-only.

    Raises:
        StoreError: as for `adopt`, or the mapping fails.
    """
    with adopt(ref) as held:
        try:
            return MappedSegment(mmap.mmap(held.ref.fd, ref.nbytes, mmap.MAP_SHARED, mmap.PROT_READ))
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot map a segment of {ref.nbytes} bytes: {error}") from error


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False


def _unmap(mapped: mmap.mmap) -> None:
    try:
        mapped.close()
    except BufferError:
        # A reference cycle, such as an exception's traceback or a module's hooks, may keep a view alive.
        gc.collect()
        try:
            mapped.close()
        except BufferError as error:
            raise StoreError(f"a segment cannot be unmapped: a view of it is still in use ({error})") from error
