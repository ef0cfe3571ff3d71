"""What front and rank say to each other: on their private socket, and commands to a rank that serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from config.errors import EngineError, StoreError
from enginepool.messages import Manifest, ModelSpec, MpsClient, SegmentRef


@dataclass(frozen=True, slots=True)
class StartRank:
    """What a rank is made with."""

    device: str
    """cpu or cuda:N."""
    threads: int
    """CPU threads of torch."""
    max_running: int
    kv_memory: int
    """Bytes that the KV cache may ever grow to; 0 for what the device has."""
    device_memory: int = 0
    """Bytes of the device that all its workers together may use; 0 for all that it has."""
    gpu: str = ""
    """The device as CUDA_VISIBLE_DEVICES calls it; "" for cpu."""
    patience: float = 300.0
    """Seconds without a word from a rank that has a model, after which the front takes it for hung."""
    mps: MpsClient | None = None
    """How it computes beside others; None: in turns with them."""
    silence: float = 10.0
    """Seconds for which it may be stopped by a signal, whatever it does."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Where an activation takes them from, and whether their checksums are compared afterwards."""

    manifest: Manifest
    segment: SegmentRef
    verify: bool


@dataclass(frozen=True, slots=True)
class Build:
    """Build the Scheduler and run it until its ShutdownReq.

    Answers: Prepared, then Built, later TornDown; each of the first two may be a BuildFailed, which also comes second
    if it has come first.
    """

    model: ModelSpec
    port_args: Any
    rendezvous: str
    """File by which the rank's process group is made."""
    weights: Weights
    kv_limit: int
    """Bytes of the KV cache from the start; 0 for no limit."""
    kv_revision: int


@dataclass(frozen=True, slots=True)
class RankReady:
    """The first message of a rank."""

    held: int
    """Bytes of the device's memory."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """SGLang takes the model; the front can make its half while the rank makes its own."""

    server_args: Any


@dataclass(frozen=True, slots=True)
class Built:
    max_input: int
    """Prompt tokens; a longer prompt would be refused by the rank."""
    pool_tokens: int
    """Tokens of the KV pool."""
    kv_bytes_per_token: float
    held: int
    """Bytes of the device's memory besides weights and KV cache."""
    copy_seconds: float
    """Of the weights, much of it while the rest was built."""
    limited: bool
    """Whether the KV limit holds."""
    phases: dict[str, float]
    """Seconds from Prepared on: `scheduler` before its model is made, `model`, `kv_cache` with attention, and `copy`,
    which is what the copy took beyond that."""


@dataclass(frozen=True, slots=True)
class BuildFailed:
    error: EngineError | StoreError
    leaked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TornDown:
    leaked: tuple[str, ...]
    """What of the model is still alive. The process must not be used any more unless this is empty."""
    held: int
    """Bytes of the device's memory."""
    phases: dict[str, float]
    """Seconds: `release` of what SGLang's Scheduler holds, `forget` of what SGLang keeps beside it, `memory` of the
    device, `heap` of the process."""


@dataclass(frozen=True, slots=True)
class FillWeights:
    """To an idle rank: copy the weights to where they were, with memory for them if they were paused. Gives Filled."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class Filled:
    phases: dict[str, float]
    """Seconds: `resume` until there is memory for the weights, then `copy` until nearly all of them are there."""
    copy_seconds: float
    """Of all weights."""


@dataclass(frozen=True, slots=True)
class PauseWeights:
    """To an idle rank: give their memory back. Result: bytes of the device's memory that the parked model holds."""


@dataclass(frozen=True, slots=True)
class LimitKv:
    """Bound the KV cache to `nbytes`. KvLimitSet says when that holds, perhaps many steps later."""

    revision: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class OfferSegment:
    """These weights may be wanted: make copying them fast."""

    model: ModelSpec
    segment: SegmentRef


@dataclass(frozen=True, slots=True)
class WithdrawSegment:
    """Let go of a model's segment."""

    model: str


Command = FillWeights | PauseWeights | LimitKv | OfferSegment | WithdrawSegment


@dataclass(frozen=True, slots=True)
class CommandDone:
    result: Any


@dataclass(frozen=True, slots=True)
class CommandFailed:
    error: EngineError | StoreError


@dataclass(frozen=True, slots=True)
class WeightsCopied:
    """The copy that a Build began is done; the rest of the build goes on."""


@dataclass(frozen=True, slots=True)
class KvLimitSet:
    revision: int
    mapped: int
    """Bytes that the KV cache holds now."""
    applied: bool
    """False: running requests hold more, and time is up."""


@dataclass(frozen=True, slots=True)
class RankLoad:
    """What a rank that has a model does, when that has changed, and now and then as a sign of life."""

    mapped: int
    """Bytes that the KV cache holds now."""
    used: int
    """Of them by running requests; what only the prefix cache uses is not counted."""
    batch: float
    """Requests in a decode step, on average since the last report; 0 if there was none."""
    held: int
    """Bytes of the device's memory besides weights and KV cache."""


Answer = RankReady | Prepared | Built | BuildFailed | TornDown | CommandDone | CommandFailed
Event = WeightsCopied | KvLimitSet | RankLoad
"""What the rank says without being asked at that moment."""
FromRank = Answer | Event
