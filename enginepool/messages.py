"""Every message between two processes of Prism. Nothing else crosses a socket.

A frame on a channel is a batch of these (see `channel`). Times are seconds, sizes bytes. Request ids are the
gateway's and unique while it runs; no client can choose one.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from config.registry import Weights


class Message(Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages: encoded as [type name, field, field, ...]."""


# --- what a worker needs to know of a model -------------------------------------------------------------------


class ModelSpec(Struct, frozen=True):
    """One model of the registry, as a worker or loader needs it."""

    name: str
    path: str
    """Folder with config.json, tokenizer and, unless they are dummies, weights; empty for the simulated engine."""
    dtype: str
    engine_args: dict[str, Any]
    weights: Weights = "checkpoint"


TensorKind = Literal["parameter", "buffer", "attribute"]
"""How a module holds a tensor. A buffer is a registered one, persistent or not."""


class TensorSpec(Struct, frozen=True):
    """One tensor of a segment. Tensors that share memory (tied weights, views) lie in the same block."""

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
    """Elements; empty for a contiguous tensor."""


class Block(Struct, frozen=True):
    """Memory that tensors of a segment lie in, alone or together. Offset and size are bytes."""

    offset: int
    nbytes: int
    crc32: int


class Manifest(Struct, frozen=True):
    """What a weight segment holds, and where."""

    model: str
    key: str
    """Digest of what the segment's content depends on: checkpoint, dtype, engine and library versions."""
    nbytes: int
    tensors: tuple[TensorSpec, ...]
    blocks: tuple[Block, ...]
    """All of the segment but the padding between them, in order."""
    values: dict[str, Any] = {}
    """Of the engine sglang: what loading changed besides tensors, by dotted path."""
    removed: tuple[str, ...] = ()
    """Likewise what loading took away."""


class SegmentRef(Struct, frozen=True):
    """How another process of this host opens a segment: /proc/`pid`/fd/`fd`."""

    pid: int
    fd: int
    nbytes: int


# --- gateway to worker ----------------------------------------------------------------------------------------


class Activate(Message, frozen=True):
    """Serve `model` from now on. Valid while blank or parked. Answer: WorkerActivated or WorkerFailed."""

    model: ModelSpec
    manifest: Manifest | None
    segment: SegmentRef | None
    verify: bool
    kv_limit: int = 0
    """Bytes of KV cache that the worker may hold, from the start; 0 is no limit."""
    kv_revision: int = 0
    """Of that limit, among those of SetKvLimit."""


class Park(Message, frozen=True):
    """Give the weights' memory back, keep the skeleton. Valid while active and idle. Answer: WorkerParked."""


class Blank(Message, frozen=True):
    """Drop everything of the model. Valid while parked. Answer: WorkerBlanked."""


class Submit(Message, frozen=True):
    """Run one request; answered by Reply, or by Head, Chunk..., Done."""

    request: int
    path: str
    """The HTTP path, such as /v1/chat/completions."""
    body: bytes
    """As the client sent it."""
    deadline: float
    """Monotonic seconds of this host; earlier goes first in the engine's own queue."""


class Abort(Message, frozen=True):
    """Stop a request. Nothing is answered; unknown ids are ignored (it may just have finished)."""

    request: int


class SetKvLimit(Message, frozen=True):
    """KV cache that this worker may hold. Answer: KvLimitApplied, with the same revision unless a newer one came."""

    revision: int
    nbytes: int


class Offer(Message, frozen=True):
    """A model's weights are in host memory: what makes an activation of it faster may be done in advance."""

    model: ModelSpec
    segment: SegmentRef


class Withdraw(Message, frozen=True):
    """A model's weights leave host memory: let go of them, or it stays full."""

    model: str


class Ping(Message, frozen=True):
    serial: int


class Exit(Message, frozen=True):
    """End the process. Nothing is answered."""


# --- worker to gateway ----------------------------------------------------------------------------------------


class WorkerReady(Message, frozen=True):
    """First message of a worker: imports done, blank.

    `held`, here and below, is what the worker has of its device's memory besides weights and elastic KV cache.
    """

    pid: int
    engine: str
    held: int = 0


class WorkerCopied(Message, frozen=True):
    """The weights of the model that it activates are on the device; the rest of the activation needs no link."""


class WorkerActivated(Message, frozen=True):
    model: str
    phases: dict[str, float]
    """Seconds by phase, in order; their sum is the activation's time inside the worker."""
    held: int = 0
    copy_seconds: float = 0.0
    """Of the weights, if they were copied; much of it may lie beside the phases."""


class Rehearsing(Message, frozen=True):
    """A worker begins or ends to ask its new model what nobody on this machine has asked it yet. Meanwhile it may
    compile, and answer nothing else for many seconds. Parking ends it too.
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
    """Seconds by phase of the teardown, in order."""


class Counted(Message, frozen=True):
    """Exact prompt tokens of a request, before its first token."""

    request: int
    prompt_tokens: int


class Reply(Message, frozen=True):
    """A whole answer at once: not streamed, or an error."""

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
    """Bytes of a streamed answer, complete server-sent events."""

    request: int
    data: bytes


class Done(Message, frozen=True):
    """A streamed answer has ended, well (`error` empty) or not."""

    request: int
    prompt_tokens: int
    output_tokens: int
    error: str


class KvLimitApplied(Message, frozen=True):
    revision: int
    mapped: int
    """Bytes of KV cache held now."""
    applied: bool = True
    """False: more than the limit is still held, and the engine has given up giving it back."""


class WorkerStats(Message, frozen=True):
    """Sent once a second while anything changes."""

    running: int
    waiting: int
    kv_bytes: int
    """Of the KV cache in use."""
    kv_mapped: int
    """Of physical memory that the KV cache holds, which may be more."""
    prompt_tokens: int
    """Prefilled since the worker began."""
    output_tokens: int
    """Decoded since the worker began."""
    prefill_rate: float
    """Tokens per second since the report before; likewise:"""
    decode_rate: float
    rss: int
    batch: float = 0.0
    """Requests in a decode step, on average over the last moments; 0 if nothing was decoded."""
    device_used: int = 0
    """Of the GPU's memory, by all its processes; 0 where NVML does not tell."""
    process_used: int | None = None
    """Of them by this worker; None where NVML does not tell."""
    held: int = 0
    """Of them besides weights and KV cache; 0 where nobody tells, and while no model is active."""


class Pong(Message, frozen=True):
    serial: int


# --- gateway and loader ---------------------------------------------------------------------------------------


class Load(Message, frozen=True):
    """Write a model's weights into the segment that the gateway made. Answer: LoadProgress..., Loaded or LoadFailed."""

    model: ModelSpec


class LoadProgress(Message, frozen=True):
    model: str
    done: int
    total: int


class Loaded(Message, frozen=True):
    """The loader holds the sealed segment open at `segment` until it is told to exit."""

    manifest: Manifest
    segment: SegmentRef


class LoadFailed(Message, frozen=True):
    model: str
    reason: str


# --- gateway and template -------------------------------------------------------------------------------------


class MpsClient(Struct, frozen=True):
    """What the environment of a process has to say, so that it computes through an MPS daemon."""

    pipes: str
    """CUDA_MPS_PIPE_DIRECTORY."""
    logs: str
    """CUDA_MPS_LOG_DIRECTORY."""
    gpu: str
    """CUDA_VISIBLE_DEVICES: the daemon's only GPU, by its UUID, since numbers would count what the daemon sees."""


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
    """What the imports took."""


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
    """Seconds that what runs may take before the policy changes."""


class CommandResult(Message, frozen=True):
    ok: bool
    text: str
    """For people: what happened."""
    data: bytes
    """For programs: JSON, as `gateway.report` describes it."""
    seconds: float
