"""Maps models' weight segments into the rank and registers them with CUDA, piece by piece.

Copies from registered memory run at the link's full rate. Registering takes longer than copying, so it happens in
advance, in a background thread, most recently offered model first. Segments are sealed, hence mapped and registered
read-only.
"""

from __future__ import annotations

import fcntl
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from enginepool.messages import SegmentRef
from enginepool.weights.layout import base_tensor
from enginepool.weights.segment import MappedSegment, open_segment

log = logging.getLogger("prism.rank")

PIECE = 64 * 2**20
"""Bytes registered at a time, which takes some 20 ms and blocks the driver."""
QUIET = 0.2
"""Seconds without a step before memory is registered, because the driver would block steps that map memory or load
kernels."""
ACTIVATION = 1.5
"""Seconds from the beginning of an activation, covering its first steps, in which no rank on the host registers memory:
a first step loads kernels, each of which would wait for the driver."""
MOST_WAIT = 2.0
"""Maximum seconds between two pieces on a busy device; registering then takes one hundredth of the time."""
_LOOK = 0.02
"""Seconds between checks for quiet."""
_READ_ONLY = 8
"""cudaHostRegisterReadOnly."""


class HostCopy:
    """One model's segment, mapped into this process. The first `registered` bytes are registered with CUDA."""

    def __init__(self, segment: MappedSegment) -> None:
        self._segment = segment
        self.bytes: Tensor = base_tensor(segment.view())
        self.registered = 0
        self.failed = False

    @property
    def nbytes(self) -> int:
        return self._segment.nbytes

    @property
    def complete(self) -> bool:
        return self.failed or self.registered == self.nbytes

    def register_piece(self) -> None:
        """Register the next piece. After a failure the rest stays unregistered, which only costs speed."""
        size = min(PIECE, self.nbytes - self.registered)
        error = _cudart().cudaHostRegister(self.bytes.data_ptr() + self.registered, size, _READ_ONLY)
        if int(error) != 0:
            log.warning("registering %d bytes of host memory failed: CUDA error %d", size, int(error))
            self.failed = True
        else:
            self.registered += size

    def close(self) -> None:
        """Unregister and unmap."""
        for start in range(0, self.registered, PIECE):
            _cudart().cudaHostUnregister(self.bytes.data_ptr() + start)
        self.registered = 0
        del self.bytes
        self._segment.close()


class HostCopies:
    """All segments offered to this rank, by model. There is no limit, because registering takes no memory."""

    def __init__(self) -> None:
        self._copies: dict[str, tuple[SegmentRef, HostCopy]] = {}
        self._changed = threading.Condition()
        self._quiet_from = 0.0
        self._thread = threading.Thread(target=self._run, name="registering", daemon=True)
        self._thread.start()

    def offer(self, model: str, ref: SegmentRef) -> HostCopy:
        """Map a segment and queue it for registration; a known segment moves to the front of the queue.

        Raises:
            StoreError: the segment is gone.
        """
        with self._changed:
            known = self._copies.pop(model, None)
            if known is not None and known[0] != ref:
                known[1].close()
                known = None
            held = known or (ref, HostCopy(open_segment(ref)))
            self._copies[model] = held
            self._changed.notify()
            return held[1]

    def withdraw(self, model: str) -> None:
        """Release a segment so that its memory can be freed. Unknown ones are ignored."""
        with self._changed:
            known = self._copies.pop(model, None)
            if known is not None:
                known[1].close()
                self._changed.notify()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No memory is registered in this context, as that would invalidate a CUDA graph being captured."""
        with self._changed:
            yield

    def note_activity(self) -> None:
        """The rank is busy: postpone registering until it has been idle for a while."""
        self._quiet_from = time.monotonic() + QUIET

    def _run(self) -> None:
        """Root of the thread."""
        while True:
            with self._changed:
                while self._next() is None:
                    self._changed.wait()
            self._wait_for_quiet()
            with _alone_on_this_host(), self._changed:
                copy = self._next()
                took = _timed(copy.register_piece) if copy is not None else 0.0
            time.sleep(took)  # leaves half of the time to the serving thread, which registering blocks in the driver

    def _wait_for_quiet(self) -> None:
        until = time.monotonic() + MOST_WAIT
        while (now := time.monotonic()) < until and (now < self._quiet_from or _somebody_activates()):
            time.sleep(_LOOK)

    def _next(self) -> HostCopy | None:
        """The copy to register next: the one offered last is the most likely to be needed."""
        for _, copy in reversed(self._copies.values()):
            if not copy.complete:
                return copy
        return None


def keep_host_quiet() -> None:
    """Called when an activation begins: for `ACTIVATION` seconds, no rank of this gateway registers memory."""
    file = _open("activating")
    fcntl.flock(file, fcntl.LOCK_SH)
    ends = threading.Timer(ACTIVATION, file.close)
    ends.daemon = True
    ends.start()


def _somebody_activates() -> bool:
    with _open("activating") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


@contextmanager
def _alone_on_this_host() -> Iterator[None]:
    """Lets one rank of this gateway register at a time; all would do so at about the same time and only slow each other
    down."""
    with _open("registering") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _open(name: str) -> IO[bytes]:
    """Open a lock file in the gateway's run folder, shared by its ranks; the kernel drops locks of dead processes."""
    return open(Path(tempfile.gettempdir(), name), "wb")


def _timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
