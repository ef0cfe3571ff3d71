"""Copies of weights from host memory to the GPU, at the link's rate where the memory is registered."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from enginepool.engines.sglang.gpu.host_copies import PIECE, HostCopy

_STAGE = 16 * 2**20
"""Bytes of one pinned buffer; each staging thread has two."""
_THREADS = 8
_REST = 2 * 2**30
"""Bytes that are copied while a first step is launched, some 40 ms; of a small model a quarter."""


@dataclass(slots=True)
class CopyTimer:
    """What a copy takes. `share` of its bytes lie before `nearly`."""

    began: torch.cuda.Event = field(default_factory=lambda: _event(timing=True))
    nearly: torch.cuda.Event = field(default_factory=lambda: _event(timing=True))
    ended: torch.cuda.Event = field(default_factory=lambda: _event(timing=True))
    share: float = 0.0
    _over: bool = False

    def mark(self, share: float) -> None:
        """Here it is nearly done, unless that has been said before."""
        if not self.share:
            self.nearly.record()
            self.share = share

    def await_copy_on_stream(self) -> None:
        """What is put on the current stream from now on waits for the end, on the GPU. Cheap once that has come.

        A capture cannot wait: whoever captures has waited before.
        """
        if not self._over and not torch.cuda.is_current_stream_capturing():
            self._over = self.ended.query()  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_event(self.ended)

    def seconds(self) -> float:
        """Waits until the copy is done."""
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1000

    def expected_seconds(self) -> float:
        """Waits until the copy is nearly done, and goes by the rate so far."""
        self.nearly.synchronize()
        return float(self.began.elapsed_time(self.nearly)) / 1000 / self.share


class Link:
    """The way from host memory to one GPU. One copy at a time."""

    def __init__(self) -> None:
        self._stream = _stream()
        self._stages: list[_Stage] | None = None

    def copy(self, source: HostCopy, target: Tensor) -> CopyTimer:
        """Fill `target` (uint8, on the GPU, of the source's size), after what is on the current stream now.

        Returns at once when all of the source is registered, and else when the rest has been staged. Only what is held
        back by the timer sees the filled tensor.
        """
        timer = CopyTimer()
        self._stream.wait_stream(torch.cuda.current_stream())
        registered = source.registered
        rest = min(_REST, source.nbytes // 4)
        with torch.cuda.stream(self._stream):
            timer.began.record()
            for start in range(0, registered, PIECE):  # no copy may cross from one registered piece into the next
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
        """Through pinned buffers: some 40 GB/s with eight threads, where a plain copy reaches 2 to 8."""
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
    """Two pinned buffers, filled and sent in turns."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(_STAGE, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._sent = [_event() for _ in range(2)]
        self._stream = _stream()

    def run(self, source: Tensor, target: Tensor, starts: range) -> None:
        with torch.cuda.stream(self._stream):
            for turn, start in enumerate(starts):
                buffer, sent = self._buffers[turn % 2], self._sent[turn % 2]
                sent.synchronize()
                piece = source[start : start + _STAGE]
                buffer[: piece.numel()].copy_(piece)
                target[start : start + piece.numel()].copy_(buffer[: piece.numel()], non_blocking=True)
                sent.record()
        self._stream.synchronize()


def _event(timing: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timing)  # type: ignore[no-untyped-call]


def _stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]
