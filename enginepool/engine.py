"""What a worker asks of an engine. One engine object per worker process, one model in it at a time."""

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
"""Sends one message to the gateway. Only to be called on the worker's event loop."""


@dataclass(slots=True)
class EngineLoad:
    """What an engine does, kept by it and sampled by the worker once a second. Tokens are counted from its start."""

    running: int = 0
    waiting: int = 0
    kv_bytes: int = 0
    """In use."""
    kv_mapped: int = 0
    """Of physical memory, where that differs."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    batch: float = 0.0
    """Requests in a decode step, on average over the last moments; 0 if nothing was decoded."""
    device_used: int = 0
    """Bytes of the GPU's memory that all its processes use; 0 where nobody tells."""
    process_used: int | None = None
    """Of them by this engine; None where nobody tells."""
    held: int = 0
    """Bytes of them besides weights and KV cache, while a model is active."""


class Engine(Protocol):
    """Lives on the worker's event loop; whatever blocks runs in the engine's own threads.

    The worker calls `activate`, `park` and `blank` one at a time and only when no request is in the engine.
    """

    name: str
    load: EngineLoad

    copy_seconds: float
    """What the last activation's copy of weights took, if it made one; much of it may lie beside the phases."""

    async def start(self) -> None:
        """Wait until it can be used. The worker calls it first.

        Raises:
            EngineError, PoolError: it cannot; the worker ends.
        """
        ...

    @property
    def held(self) -> int:
        """Bytes of the device's memory besides weights and elastic KV cache; 0 on a CPU. Read while nothing changes."""
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
        """Make `model` ready to serve and return the seconds by phase.

        `kv_limit` (bytes, 0 for none) bounds the KV cache from the start, as `set_kv_limit` does later.
        A parked skeleton of the same model is revived, one of another model is torn down first.

        Raises:
            EngineError: the model cannot be built; the engine is blank again.
            StoreError: the segment cannot be mapped or fails its checksum; likewise.
        """
        ...

    async def park(self) -> str:
        """Give back the weights' memory, keep the skeleton. Returns the model's name."""
        ...

    async def blank(self) -> dict[str, float]:
        """Drop the skeleton, if there is one, and return the seconds by phase."""
        ...

    def submit(self, request: Submit) -> None:
        """Take a request; its outputs go to the `emit` given at construction. Never raises for what a client sent."""
        ...

    def abort(self, request: int) -> None:
        """Drop a request and everything it holds; no output of it is emitted afterwards."""
        ...

    def offer(self, model: ModelSpec, segment: SegmentRef) -> None:
        """The model's weights are in host memory: what makes an activation of it faster may be done in advance."""
        ...

    def withdraw(self, model: str) -> None:
        """The model's weights leave host memory: let go of them."""
        ...

    def set_kv_limit(self, revision: int, nbytes: int) -> None:
        """Bound the KV cache; KvLimitApplied is emitted once it holds, or once the engine gives that up."""
        ...

    def hold(self, paused: bool) -> None:
        """Stop decoding while the gateway does not read, or go on."""
        ...

    async def close(self) -> None:
        """Stop threads; the process is about to end."""
        ...
