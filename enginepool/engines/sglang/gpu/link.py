"""Copies weights from host memory to the GPU, at the link's full rate as far as the memory is registered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from enginepool.engines.sglang.gpu.host_copies import PIECE, HostCopy

_STAGE = 16 * 2**20
"""Bytes of a pinned buffer; each staging thread has two."""
_THREADS = 8
"""Number of staging threads."""
_REST = 2 * 2**30
"""Bytes that are copied while the first step is being launched, some 40 ms; at most a quarter of the model."""


@dataclass(slots=True)
class CopyTimer:
    """Measures a copy. `share` is the share of its bytes that are copied by the event `nearly`."""

    began: torch.cuda.Event = field(default_factory=lambda: _event(timing=True))
    nearly: torch.cuda.Event = field(default_factory=lambda: _event(timing=True))
    ended: torch.cuda.Event = field(default_factory=lambda: _event(timing=True))
    share: float = 0.0
    _over: bool = False

    def mark(self, share: float) -> None:
        """Record the event `nearly`, after `share` of the bytes, unless it was recorded already."""
        if not self.share:
            self.nearly.record()
            self.share = share

    def await_copy_on_stream(self) -> None:
        """Make the current stream wait for the end of the copy, on the GPU. Cheap once the copy has ended.

        A stream being captured cannot wait for outside events; whoever captures has waited before.
        """
        if not self._over and not torch.cuda.is_current_stream_capturing():
            self._over = self.ended.query()  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_event(self.ended)

    def seconds(self) -> float:
        """Wait until the copy is done; returns the seconds it took."""
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1000

    def expected_seconds(self) -> float:
        """Wait until the copy is nearly done; returns the seconds it will take, extrapolated from the rate so far."""
        self.nearly.synchronize()
        return float(self.began.elapsed_time(self.nearly)) / 1000 / self.share


class Link:
    """The link from host memory to one GPU, used for one copy at a time."""

    def __init__(self) -> None:
        self._stream = _stream()
        self._stages: list[_Stage] | None = None

    def copy(self, source: HostCopy, target: Tensor) -> CopyTimer:
        """Copy `source` to `target` (uint8, on the GPU, of the same size), after the work on the current stream.

        Returns at once if the whole source is registered, otherwise when the rest has been staged. Only work that waits
        through the timer is sure to see the copied data.
        """
        timer = CopyTimer()
        self._stream.wait_stream(torch.cuda.current_stream())
        registered = source.registered
        rest = min(_REST, source.nbytes // 4)
        with torch.cuda.stream(self._stream):
            timer.began.record()
            for start in range(0, registered, PIECE):  # a copy must not span two registrations
                end = min(start + PIECE, registered)
                target[start:end].copy_(source.bytes[start:end], non_blocking=True)
                if source.nbytes - end <= rest:
                    timer.mark(end / source.nbytes)
        if registered < source.nbytes:
            self._stage(source.bytes[registered:], target[registered:])
        with torch.cuda.stream(self._stream):
            timer.mark(1.0)
            timer.ended.record()
        return timer

    def _stage(self, source: Tensor, target: Tensor) -> None:
        """Copy unregistered memory through pinned buffers: some 40 GB/s with eight threads, against 2 to 8 directly."""
        if self._stages is None:
            self._stages = [_Stage() for _ in range(_THREADS)]
        with ThreadPoolExecutor(_THREADS, "staging") as threads:
            futures = [
                threads.submit(stage.run, source, target, range(index * _STAGE, source.numel(), _THREADS * _STAGE))
                for index, stage in enumerate(self._stages)
            ]
            for future in futures:
                future.result()


class _Stage:
    """Two pinned buffers, filled and sent alternately."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(_STAGE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._sent = [_event() for _ in range(2)]
        self._stream = _stream()

    def run(self, source: Tensor, target: Tensor, starts: range) -> None:
        with torch.cuda.stream(self._stream):
            for number, start in enumerate(starts):
                buffer, sent = self._buffers[number % 2], self._sent[number % 2]
                sent.synchronize()  # the buffer's previous content has left
                piece = source[start : start + _STAGE]
                buffer[: piece.numel()].copy_(piece)
                target[start : start + piece.numel()].copy_(buffer[: piece.numel()], non_blocking=True)
                sent.record()
        self._stream.synchronize()


def _event(timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
