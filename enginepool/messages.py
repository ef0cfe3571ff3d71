"""All messages exchanged between Prism's processes.

A frame on a channel is a batch of messages (see `channel`). Times are in seconds, sizes in bytes. The gateway assigns
request ids, unique while it runs; clients cannot choose them.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from config.registry import Weights


class Message(Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages: encoded as [type name, field, field, ...]."""


# --- what a worker needs to know about a model ----------------------------------------------------------------


class ModelSpec(Struct, frozen=True):
    """One model of the registry, as a worker or loader needs it."""

    name: str
    path: str
    """Folder with config.json, tokenizer and, unless `weights` is dummy, weights; empty for the simulated engine."""
    dtype: str
    engine_args: dict[str, Any]
    weights: Weights = "checkpoint"


TensorKind = Literal["parameter", "buffer", "attribute"]
"""How a module stores a tensor. Buffers are registered buffers, persistent or not."""


class TensorSpec(Struct, frozen=True):
    """One tensor of a segment. Tensors that share memory (tied weights, views) are in the same block."""

    name: str
    """Dotted path from the model's root module."""
    dtype: str
    """torch's name without the prefix, such as bfloat16."""
    shape: tuple[int, ...]
    offset: int
    """Bytes from the segment's start."""
    nbytes: int
    kind: TensorKind
    stride: tuple[int, ...] = ()
    """In elements; empty for a contiguous tensor."""


class Block(Struct, frozen=True):
    """A contiguous range of a segment that holds one or several tensors. Offset and size are in bytes."""

    offset: int
    nbytes: int
    crc32: int


class Manifest(Struct, frozen=True):
    """The contents of a weight segment."""

    model: str
    key: str
    """Digest of everything the segment's content depends on: checkpoint, dtype, engine and library versions."""
    nbytes: int
    tensors: tuple[TensorSpec, ...]
    blocks: tuple[Block, ...]
    """In order, covering the segment except for padding."""
    values: dict[str, Any] = {}
    """`sglang` only: values other than tensors that loading changed, by dotted path."""
    removed: tuple[str, ...] = ()
    """`sglang` only: dotted paths that loading removed."""


class SegmentRef(Struct, frozen=True):
    """Where another process on this host can open a segment: /proc/`pid`/fd/`fd`."""

    pid: int
    fd: int
    nbytes: int


# --- gateway to worker ----------------------------------------------------------------------------------------


class Activate(Message, frozen=True):
    """Activate `model`. Valid while blank or parked. Answer: WorkerActivated or WorkerFailed."""

    model: ModelSpec
    manifest: Manifest | None
    segment: SegmentRef | None
    verify: bool
    kv_limit: int = 0
    """Initial limit of the KV cache, in bytes; 0 for none."""
    kv_revision: int = 0
    """Revision of that limit, counted together with those of SetKvLimit."""


class Park(Message, frozen=True):
    """Release the weights' memory, keep the skeleton. Valid while active and idle. Answer: WorkerParked."""


class Blank(Message, frozen=True):
    """Drop the model completely. Valid while parked. Answer: WorkerBlanked."""


class Submit(Message, frozen=True):
    """Run a request. Answer: Reply, or Head, Chunk..., Done."""

    request: int
    path: str
    """The HTTP path, such as /v1/chat/completions."""
    body: bytes
    """As the client sent it."""
    deadline: float
    """Seconds on this host's monotonic clock; earlier deadlines go first in the engine's queue."""


class Abort(Message, frozen=True):
    """Stop a request. No answer; unknown ids are ignored, since the request may just have finished."""

    request: int


class SetKvLimit(Message, frozen=True):
    """Limit the worker's KV cache to `nbytes`. Answer: KvLimitApplied, with this revision unless a newer one came."""

    revision: int
    nbytes: int


class Offer(Message, frozen=True):
    """A model's weights are in host memory, so that the worker may prepare for a fast activation."""

    model: ModelSpec
    segment: SegmentRef


class Withdraw(Message, frozen=True):
    """A model's weights leave host memory: release them, so that the memory is freed."""

    model: str


class Ping(Message, frozen=True):
    serial: int


class Exit(Message, frozen=True):
    """End the process. No answer."""


# --- worker to gateway ----------------------------------------------------------------------------------------


class WorkerReady(Message, frozen=True):
    """A worker's first message: it is ready and blank.

    `held`, here and below, is the device memory the worker uses besides weights and elastic KV cache, in bytes.
    """

    pid: int
    engine: str
    held: int = 0


class WorkerCopied(Message, frozen=True):
    """The weights of the model being activated are on the device; the rest of the activation does not use the link."""


class WorkerActivated(Message, frozen=True):
    model: str
    phases: dict[str, float]
    """Seconds by phase, in order; their sum is the activation's time inside the worker."""
    held: int = 0
    copy_seconds: float = 0.0
    """Seconds of copying weights, if they were copied; may overlap with the phases."""


class Rehearsing(Message, frozen=True):
    """A worker begins or ends warming up a model that was never served on this machine, by sending it requests.

    Meanwhile kernels may be compiled, and other requests wait for many seconds. Parking ends the warm-up too.
    """

    begins: bool


class WorkerFailed(Message, frozen=True):
    """An Activate failed; the worker is blank again."""

    model: str
    reason: str
    held: int = 0


class WorkerParked(Message, frozen=True):
    model: str
    held: int = 0


class WorkerBlanked(Message, frozen=True):
    held: int = 0
    phases: dict[str, float] = {}
    """Seconds of the teardown by phase, in order."""


class Counted(Message, frozen=True):
    """The exact number of a request's prompt tokens, sent before its first token."""

    request: int
    prompt_tokens: int


class Reply(Message, frozen=True):
    """A complete answer: not streamed, or an error."""

    request: int
    status: int
    content_type: str
    body: bytes
    prompt_tokens: int
    output_tokens: int


class Head(Message, frozen=True):
    """A streamed answer begins."""

    request: int
    status: int
    content_type: str


class Chunk(Message, frozen=True):
    """A part of a streamed answer; whole server-sent events."""

    request: int
    data: bytes


class Done(Message, frozen=True):
    """A streamed answer has ended, successfully if `error` is empty."""

    request: int
    prompt_tokens: int
    output_tokens: int
    error: str


class KvLimitApplied(Message, frozen=True):
    revision: int
    mapped: int
    """Bytes of KV cache mapped now."""
    applied: bool = True
    """False if the KV cache still exceeds the limit and the engine has given up shrinking it."""


class WorkerStats(Message, frozen=True):
    """Sent once a second while anything changes."""

    running: int
    waiting: int
    kv_bytes: int
    """Bytes of KV cache in use."""
    kv_mapped: int
    """Bytes of physical memory mapped for the KV cache, which may be more."""
    prompt_tokens: int
    """Tokens prefilled since the worker started."""
    output_tokens: int
    """Tokens decoded since the worker started."""
    prefill_rate: float
    """Tokens prefilled per second since the previous report."""
    decode_rate: float
    """Tokens decoded per second since the previous report."""
    rss: int
    batch: float = 0.0
    """Mean number of requests per recent decode step; 0 if nothing was decoded."""
    device_used: int = 0
    """Bytes of GPU memory used by all processes; 0 if NVML does not tell."""
    process_used: int | None = None
    """Bytes of GPU memory used by this worker; None if NVML does not tell."""
    held: int = 0
    """Bytes of GPU memory used by this worker besides weights and KV cache; 0 if unknown or no model is active."""


class Pong(Message, frozen=True):
    serial: int


# --- gateway and loader ---------------------------------------------------------------------------------------


class Load(Message, frozen=True):
    """Write a model's weights into a new segment. Answer: LoadProgress..., then Loaded or LoadFailed."""

    model: ModelSpec


class LoadProgress(Message, frozen=True):
    model: str
    done: int
    total: int


class Loaded(Message, frozen=True):
    """The loader keeps the sealed segment open at `segment` until it is told to exit."""

    manifest: Manifest
    segment: SegmentRef


class LoadFailed(Message, frozen=True):
    model: str
    reason: str


# --- gateway and template -------------------------------------------------------------------------------------


class MpsClient(Struct, frozen=True):
    """The environment variables that make a process a client of an MPS daemon."""

    pipes: str
    """CUDA_MPS_PIPE_DIRECTORY."""
    logs: str
    """CUDA_MPS_LOG_DIRECTORY."""
    gpu: str
    """CUDA_VISIBLE_DEVICES: the UUID of the daemon's only GPU, since numbers would refer to what the daemon sees."""


class Spawn(Message, frozen=True):
    """Fork a child that connects to `socket` and runs as `role`. Answer: Spawned."""

    serial: int
    role: str
    """worker or loader."""
    name: str
    socket: str
    device: str
    mps: MpsClient | None = None


class Spawned(Message, frozen=True):
    serial: int
    pid: int


class TemplateReady(Message, frozen=True):
    seconds: float
    """Duration of the imports."""


ToWorker = Activate | Park | Blank | Submit | Abort | SetKvLimit | Offer | Withdraw | Ping | Exit
WorkerChange = (
    WorkerReady
    | WorkerCopied
    | Rehearsing
    | WorkerActivated
    | WorkerFailed
    | WorkerParked
    | WorkerBlanked
    | KvLimitApplied
)
"""What becomes of a worker and of the model in it."""
FromWorker = WorkerChange | Counted | Reply | Head | Chunk | Done | WorkerStats | Pong
ToLoader = Load | Exit
FromLoader = LoadProgress | Loaded | LoadFailed
ToTemplate = Spawn | Exit
FromTemplate = TemplateReady | Spawned


# --- operator and gateway -------------------------------------------------------------------------------------


class Command(Message, frozen=True):
    """One admin command; answered by one CommandResult when it is done."""

    name: str
    """status, models, workers, activate, evict, drain, resume, policy or stop."""
    model: str = ""
    worker: int | None = None
    now: bool = False
    policy: str = ""
    within: float = 60.0
    """Seconds that running requests may take before the policy changes."""


class CommandResult(Message, frozen=True):
    ok: bool
    text: str
    """For people: what happened."""
    data: bytes
    """For programs: JSON, as `gateway.report` describes it."""
    seconds: float
