"""The interface between a rank and its device: everything that differs between a CPU and a GPU."""

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
    """The KV cache of one Scheduler."""

    bytes_per_token: float

    @property
    def mapped(self) -> int:
        """Bytes of physical memory mapped."""
        ...

    @property
    def allocated(self) -> int:
        """Bytes used by running requests and the prefix cache."""
        ...

    def set_limit(self, revision: int, nbytes: int) -> KvLimitSet | None:
        """Begin to apply a limit; returns None if the cache still exceeds it, and then `step` continues."""
        ...

    def step(self) -> KvLimitSet | None:
        """Continue with a pending limit, between two steps; returns the result once there is one."""
        ...

    def pause(self) -> None:
        """Release all memory; nothing runs until `resume`."""
        ...

    def resume(self) -> None:
        """Restore what every step needs. Raises: EngineError."""
        ...


class RankDevice(Protocol):
    """A rank's device, used in the rank's main thread."""

    gpu_id: int
    memory: int
    """Total bytes; 0 for a CPU."""

    def prepare_first_step(self) -> None:
        """Load what the first step in this process would otherwise have to load."""
        ...

    def building(self) -> AbstractContextManager[None]:
        """The context in which to construct a Scheduler."""
        ...

    def note_activity(self) -> None:
        """Postpone background work, because the rank is busy. Called at every step, so it must be cheap."""
        ...

    def allocate(self, nbytes: int) -> Tensor:
        """Allocate uninitialised memory for weights (uint8)."""
        ...

    def offer(self, model: str, segment: SegmentRef) -> None:
        """Prepare for copying a segment fast. Raises: StoreError if it is gone."""
        ...

    def withdraw(self, model: str) -> None:
        """Release a segment."""
        ...

    def copy(self, model: str, segment: SegmentRef, flat: Tensor) -> None:
        """Begin to copy a segment into `flat` (uint8, of the same size). Whoever needs the data must wait by one of the
        next methods. Raises: StoreError if the segment is gone."""
        ...

    def await_copy_on_stream(self) -> None:
        """Make later work on the current stream wait for the last copy."""
        ...

    def wait_nearly_copied(self) -> float:
        """Wait until the last copy will be done by the time a first step has been launched; returns the seconds that
        the whole copy will take."""
        ...

    def wait_copied(self) -> float:
        """Wait until the last copy is done; returns the seconds it took."""
        ...

    def kv_cache(self, scheduler: Any) -> KvCache: ...

    def install(self, scheduler: Any) -> None:
        """Adapt a constructed Scheduler before it runs."""
        ...

    def capture_next_graph(self, scheduler: Any) -> bool:
        """While the rank is idle, spend some tens of milliseconds on capturing a CUDA graph; returns False if none is
        missing."""
        ...

    def pause(self) -> None:
        """Release the weights' physical memory, keeping their addresses."""
        ...

    def resume(self) -> None:
        """Map uninitialised memory for the weights again."""
        ...

    def forget(self) -> None:
        """Release what is left of a torn-down model."""
        ...

    def used(self) -> int:
        """Bytes of device memory that this process uses."""
        ...

    def reserved(self) -> int:
        """Bytes of device memory taken by torch's allocator, paused or not."""
        ...


def open_device(gpu: str, mps: MpsClient | None) -> RankDevice:
    """Open this rank's device: the GPU that CUDA_VISIBLE_DEVICES calls `gpu`, or the CPU if that is empty.

    On a GPU, this creates the CUDA context. The process is restricted to this GPU, because new threads start on the
    first visible device, so threads of SGLang, kvcached and this engine would otherwise use the wrong one.

    Raises:
        EngineError: the CUDA driver does not start.
    """
    if not gpu:
        from enginepool.engines.sglang.rank.cpu import CpuDevice

        return CpuDevice()
    os.environ.update({VISIBLE: gpu} | mps_environment(mps))
    from enginepool.engines.sglang.gpu import driver
    from enginepool.engines.sglang.gpu.device import GpuDevice

    driver.start()
    return GpuDevice()
