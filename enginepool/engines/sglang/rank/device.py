"""What a rank asks of the device that it serves on: all that differs between a CPU and a GPU."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

from config.gpus import VISIBLE
from enginepool.engines.sglang.protocol import KvLimitSet
from enginepool.messages import MpsClient, SegmentRef
from enginepool.mps.control import mps_environment


class KvCache(Protocol):
    """The KV cache of one built Scheduler."""

    bytes_per_token: float

    @property
    def mapped(self) -> int:
        """Bytes of physical memory that it holds."""
        ...

    @property
    def allocated(self) -> int:
        """Bytes that running requests and the prefix cache use."""
        ...

    def set_limit(self, revision: int, nbytes: int) -> KvLimitSet | None:
        """Begin to apply a limit. None while the cache still holds more: then `step` goes on, and answers."""
        ...

    def step(self) -> KvLimitSet | None:
        """To be called between the Scheduler's steps."""
        ...

    def pause(self) -> None:
        """Give back all memory: nothing runs until `resume`."""
        ...

    def resume(self) -> None:
        """What every step needs again."""
        ...


class RankDevice(Protocol):
    """Lives in the rank, in its main thread."""

    gpu_id: int
    memory: int
    """Bytes in all; 0 for a CPU."""

    def prepare_first_step(self) -> None:
        """What the first step of this process would load, loaded while nobody waits."""
        ...

    def building(self) -> AbstractContextManager[None]:
        """To be held while a Scheduler is made."""
        ...

    def note_activity(self) -> None:
        """There is something to do: what goes on in the background waits. Called at every step, so it is cheap."""
        ...

    def allocate(self, nbytes: int) -> Tensor:
        """Memory for weights (uint8), with anything in it."""
        ...

    def offer(self, model: str, segment: SegmentRef) -> None:
        """These weights may be wanted: make copying them fast. Raises StoreError if they are gone."""
        ...

    def withdraw(self, model: str) -> None:
        """Let go of a segment."""
        ...

    def copy(self, model: str, segment: SegmentRef, flat: Tensor) -> None:
        """Begin to make `flat` (uint8, as long as the segment) equal to it. Who needs the whole of it holds back or
        settles. Raises StoreError if the segment is gone."""
        ...

    def await_copy_on_stream(self) -> None:
        """What is put on the current stream from now on sees the whole of the last copy."""
        ...

    def wait_nearly_copied(self) -> float:
        """Wait until the last copy will be done by the time that a first step is launched; returns the seconds that
        all of it is going to have taken."""
        ...

    def wait_copied(self) -> float:
        """Wait until the last copy is done; returns the seconds that it took."""
        ...

    def kv_cache(self, scheduler: Any) -> KvCache: ...

    def install(self, scheduler: Any) -> None:
        """Once a Scheduler is made, before it runs."""
        ...

    def capture_next_graph(self, scheduler: Any) -> bool:
        """Some tens of milliseconds of work for faster steps, while the rank is idle. False: none is left."""
        ...

    def pause(self) -> None:
        """Give the weights' physical memory back; their addresses stay."""
        ...

    def resume(self) -> None:
        """Memory for the weights again, with anything in it."""
        ...

    def forget(self) -> None:
        """Give back what a torn-down model has left."""
        ...

    def used(self) -> int:
        """Bytes of the device's memory that this process holds."""
        ...

    def reserved(self) -> int:
        """Of them what torch's allocator has taken, whether paused or not."""
        ...


def open_device(gpu: str, mps: MpsClient | None) -> RankDevice:
    """This rank's device: the GPU that CUDA_VISIBLE_DEVICES calls `gpu`, or the CPU if that is empty.

    Of a GPU this makes the CUDA context. The process sees no other: every thread begins on its first device, so those
    that SGLang, kvcached and this engine start would work on the wrong one.
    """
    if not gpu:
        from enginepool.engines.sglang.rank.cpu import CpuDevice

        return CpuDevice()
    os.environ.update({VISIBLE: gpu} | mps_environment(mps))
    from enginepool.engines.sglang.gpu import driver
    from enginepool.engines.sglang.gpu.device import GpuDevice

    driver.start()
    return GpuDevice()
