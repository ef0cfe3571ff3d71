"""The messages between front and rank, on their private connection, and the commands to a rank that serves a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from config.errors import EngineError, StoreError
from enginepool.messages import Manifest, ModelSpec, MpsClient, SegmentRef


@dataclass(frozen=True, slots=True)
class StartRank:
    """The settings of a rank."""

    device: str
    """cpu or cuda:N."""
    threads: int
    """torch's CPU threads."""
    max_running: int
    kv_memory: int
    """Maximum size of the KV cache in bytes; 0 for the device's memory."""
    device_memory: int = 0
    """Bytes of the device that all its workers together may use; 0 for all of it."""
    gpu: str = ""
    """The device's name in CUDA_VISIBLE_DEVICES; "" for cpu."""
    patience: float = 300.0
    """Seconds of silence after which the front considers a rank with a model to be hung."""
    mps: MpsClient | None = None
    """The MPS daemon to use; None for none."""
    silence: float = 10.0
    """Seconds that the rank may stay stopped by a signal, whatever its state, before it counts as hung."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The source of an activation's weights, and whether to verify their checksums after the copy."""

    manifest: Manifest
    segment: SegmentRef
    verify: bool


@dataclass(frozen=True, slots=True)
class Build:
    """Build the Scheduler and run it until it gets a ShutdownReq.

    Answers: Prepared, then Built, later TornDown. Either of the first two may be a BuildFailed instead; if the first
    is, so is the second.
    """

    model: ModelSpec
    port_args: Any
    rendezvous: str
    """File for the rendezvous of the rank's process group."""
    weights: Weights
    kv_limit: int
    """Initial limit of the KV cache, in bytes; 0 for none."""
    kv_revision: int


@dataclass(frozen=True, slots=True)
class RankReady:
    """A rank's first message."""

    held: int
    """Bytes of device memory in use."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """SGLang accepts the model, so the front can build its half while the rank builds its own."""

    server_args: Any


@dataclass(frozen=True, slots=True)
class Built:
    max_input: int
    """Maximum prompt tokens."""
    pool_tokens: int
    """Tokens of the KV pool."""
    kv_bytes_per_token: float
    held: int
    """Bytes of device memory in use besides weights and KV cache."""
    copy_seconds: float
    """Seconds of copying weights, which overlaps with building."""
    limited: bool
    """Whether the KV limit holds."""
    phases: dict[str, float]
    """Seconds after Prepared: `scheduler` until the model is built, `model`, `kv_cache` including attention, and
    `copy`, the remaining wait for the copy."""


@dataclass(frozen=True, slots=True)
class BuildFailed:
    error: EngineError | StoreError
    leaked: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TornDown:
    leaked: tuple[str, ...]
    """Parts of the model that are still alive. If there are any, the process must not be used any more."""
    held: int
    """Bytes of device memory in use."""
    phases: dict[str, float]
    """Seconds for releasing: `release` the Scheduler's resources, `forget` SGLang's global state, `memory` of the
    device, `heap` of the process."""


@dataclass(frozen=True, slots=True)
class FillWeights:
    """To an idle rank: copy the weights into place, after mapping memory if they are paused. Result: Filled."""

    weights: Weights


@dataclass(frozen=True, slots=True)
class Filled:
    phases: dict[str, float]
    """Seconds: `resume` until memory is mapped, then `copy` until nearly all weights are copied."""
    copy_seconds: float
    """Seconds of copying all weights."""


@dataclass(frozen=True, slots=True)
class PauseWeights:
    """To an idle rank: release the weights' memory. Result: bytes of device memory that the parked model holds."""


@dataclass(frozen=True, slots=True)
class LimitKv:
    """Limit the KV cache to `nbytes`. KvLimitSet follows when the limit holds, perhaps many steps later."""

    revision: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class OfferSegment:
    """These weights may be needed soon: prepare for copying them fast."""

    model: ModelSpec
    segment: SegmentRef


@dataclass(frozen=True, slots=True)
class WithdrawSegment:
    """Release a model's segment."""

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
    """The copy started by Build is done; building continues."""


@dataclass(frozen=True, slots=True)
class KvLimitSet:
    revision: int
    mapped: int
    """Bytes of KV cache mapped now."""
    applied: bool
    """False if running requests still hold more and time is up."""


@dataclass(frozen=True, slots=True)
class RankLoad:
    """The load of a rank with a model, sent when it changes and occasionally as a sign of life."""

    mapped: int
    """Bytes of KV cache mapped now."""
    used: int
    """Bytes of KV cache used by running requests, without those only in the prefix cache."""
    batch: float
    """Mean number of requests per decode step since the last report; 0 if there was none."""
    held: int
    """Bytes of device memory in use besides weights and KV cache."""


Answer = RankReady | Prepared | Built | BuildFailed | TornDown | CommandDone | CommandFailed
Event = WeightsCopied | KvLimitSet | RankLoad
"""The rank's unsolicited messages."""
FromRank = Answer | Event
