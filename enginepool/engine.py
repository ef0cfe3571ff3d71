"""The interface between a worker and its engine. A worker process has one engine, with one model in it at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from enginepool.messages import (
    Chunk,
    Counted,
    Done,
    Head,
    KvLimitApplied,
    Manifest,
    ModelSpec,
    Rehearsing,
    Reply,
    SegmentRef,
    Submit,
    WorkerCopied,
)

Output = Counted | Reply | Head | Chunk | Done | KvLimitApplied | WorkerCopied | Rehearsing
Emit = Callable[[Output], None]
"""Sends a message to the gateway. Must be called on the worker's event loop."""


@dataclass(slots=True)
class EngineLoad:
    """Current load, updated by the engine and sampled by the worker once a second. Tokens count from the engine's
    start."""

    running: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    """Bytes of KV cache in use."""
    kv_mapped: int = 0
    """Bytes of physical memory mapped for the KV cache, if that differs."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    batch: float = 0.0
    """Mean number of requests per recent decode step; 0 if nothing was decoded."""
    device_used: int = 0
    """Bytes of GPU memory used by all processes; 0 if unknown."""
    process_used: int | None = None
    """Bytes of GPU memory used by this engine; None if unknown."""
    held: int = 0
    """Bytes of GPU memory used by this engine besides weights and KV cache, while a model is active."""


class Engine(Protocol):
    """Lives on the worker's event loop; anything that blocks runs in the engine's own threads.

    The worker calls `activate`, `park` and `blank` one at a time, and only while the engine has no requests.
    """

    name: str
    load: EngineLoad

    copy_seconds: float
    """Seconds that the last activation spent copying weights, if any; the copy may overlap with the phases."""

    async def start(self) -> None:
        """Wait until the engine is ready for use. The worker calls this first.

        Raises:
            EngineError, PoolError: the engine cannot start; the worker ends.
        """
        ...

    @property
    def held(self) -> int:
        """Bytes of device memory besides weights and elastic KV cache; 0 on a CPU. Read between state changes only."""
        ...

    async def activate(
        self,
        model: ModelSpec,
        manifest: Manifest | None,
        segment: SegmentRef | None,
        verify: bool,
        *,
        kv_limit: int = 0,
        kv_revision: int = 0,
    ) -> dict[str, float]:
        """Make `model` ready to serve; returns seconds by phase.

        `kv_limit` (bytes, 0 for none) bounds the KV cache from the start, as `set_kv_limit` does later. A parked
        skeleton of the same model is revived; one of another model is torn down first.

        Raises:
            EngineError: the model cannot be built; the engine is blank again.
            StoreError: the segment cannot be mapped or a checksum is wrong; the engine is blank again.
        """
        ...

    async def park(self) -> str:
        """Release the weights' memory but keep the skeleton; returns the model's name."""
        ...

    async def blank(self) -> dict[str, float]:
        """Drop the skeleton, if any; returns seconds by phase."""
        ...

    def submit(self, request: Submit) -> None:
        """Accept a request; its outputs go to the `emit` given at construction. Never raises for a client's mistake."""
        ...

    def abort(self, request: int) -> None:
        """Drop a request and its resources; none of its outputs is emitted afterwards."""
        ...

    def offer(self, model: ModelSpec, segment: SegmentRef) -> None:
        """The model's weights are in host memory, so the engine may prepare for a fast activation."""
        ...

    def withdraw(self, model: str) -> None:
        """The model's weights are about to leave host memory: release them."""
        ...

    def set_kv_limit(self, revision: int, nbytes: int) -> None:
        """Bound the KV cache; KvLimitApplied is emitted once the limit holds or the engine gives up."""
        ...

    def hold(self, paused: bool) -> None:
        """Stop decoding while the gateway does not read, or resume."""
        ...

    async def close(self) -> None:
        """Stop all threads; the process is about to end."""
        ...
