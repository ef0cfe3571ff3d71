"""What the gateway tells programs about itself: over the admin socket, by HTTP and in `--json`.

The field names are the JSON's keys. `gateway.status` fills these structs in; the CLI, the benchmarks and the tests read
answers back into them.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from config.errors import OperatorError
from config.registry import EngineName, PolicyName
from enginepool.messages import CommandResult
from scheduler.state.phases import Phase


class ModelState(StrEnum):
    """The phase that the furthest of a model's workers has reached; without a worker, where its weights are."""

    ACTIVE = Phase.ACTIVE.value
    ACTIVATING = Phase.ACTIVATING.value
    PREPARING = Phase.PREPARING.value
    DRAINING = Phase.DRAINING.value
    PARKING = Phase.PARKING.value
    PARKED = Phase.PARKED.value
    LOADING = "loading"
    """On the way from disk into host memory."""
    IN_HOST_MEMORY = "in host memory"
    ON_DISK = "on disk"


class ModelStatus(Struct, frozen=True):
    name: str
    state: ModelState
    workers: list[int]
    """Numbers of the workers that hold it, in whatever phase."""
    running: int
    """Requests on workers."""
    waiting: int
    """Requests that no worker has yet."""
    host_bytes: int
    """Bytes of its weights in host memory."""
    weight_bytes: int
    """Bytes of all its weights; an estimate from its files until it has been loaded once."""
    pinned: bool
    activation_s: float | None
    """Seconds that an activation is expected to take; None before anything is known."""
    idle_s: float | None
    """Seconds since it was last used; None if it never was."""
    failure: str
    """Why it cannot be served; empty if it can."""


class WorkerStatus(Struct, frozen=True):
    worker: int
    device: str
    pid: int | None
    """None while there is no process."""
    mps: bool
    """Whether it shares its GPU through MPS."""
    state: Phase
    model: str | None
    """The model it serves or prepares, or whose skeleton it keeps."""
    running: int
    """Requests."""
    rehearsing: bool
    """Whether it is making its model's warm-up requests."""
    in_state_s: float | None
    """Seconds since it entered its state."""
    restarts: int
    held_bytes: int
    """Bytes of device memory besides weights and KV cache."""
    kv_bytes: int
    """Bytes of device memory that its KV cache has mapped."""
    kv_limit: int
    """Bytes that its KV cache may map; 0 without a limit."""
    rss_bytes: int | None
    """Bytes of host memory, as resident set size; None before its first report."""
    prompt_tokens: int
    """Tokens prefilled since the process started."""
    output_tokens: int
    """Tokens decoded since the process started."""
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    decode_batch: float
    """Mean number of requests in a decode step, of late; 0 if nothing was decoded."""
    gpu_bytes: int | None
    """Bytes of the GPU's memory used by this worker; None where NVML does not tell."""
    device_used_bytes: int
    """Bytes of the GPU's memory used by all its processes; 0 where NVML does not tell."""
    activation_phases_s: dict[str, float] | None
    """Seconds of its last activation, by phase."""
    activation_copy_s: float | None
    """Seconds that this activation's copy of the weights took, in part beside the phases; 0 if none was made."""
    teardown_phases_s: dict[str, float] | None
    """Seconds of its last teardown, by phase."""


class DeviceStatus(Struct, frozen=True):
    """How a device's memory is shared out, in bytes."""

    device: str
    capacity: int
    held: int
    """By workers, besides weights and KV cache."""
    weights: int
    kv_limit: int
    """What all KV caches together may map."""
    free: int


class HostMemoryStatus(Struct, frozen=True):
    """The host memory for weights, in bytes."""

    used: int
    capacity: int


class LoadStatus(Struct, frozen=True):
    """Bytes of a model on its way into host memory."""

    done: int
    total: int


DecisionKind = Literal["activate", "drain", "resume", "park", "blank", "recycle", "stage", "unstage"]
"""The names of the actions in `scheduler.actions`."""
OutcomeKind = Literal["activated", "blanked", "refused", "policy_changed", "worker_dead", "device_fault"]
EntryKind = DecisionKind | OutcomeKind


class JournalEntry(Struct, frozen=True):
    """Something the scheduler decided, or what came of it."""

    time: str
    """ISO 8601, UTC, to the millisecond."""
    text: str
    """One line for people; ends with the reason if there is one."""
    kind: EntryKind
    model: str | None
    """None if it concerns no model, or a worker that has none."""
    worker: int | None
    """None if it concerns no worker, or all of a device."""
    device: str | None
    """The worker's device, or the one that failed."""
    reason: str
    """Why; empty for what follows from an earlier entry."""


class Readiness(Struct, frozen=True):
    """The body of `GET /ready`."""

    ready: bool
    reasons: list[str]
    """What it waits for; empty once it is ready."""


class Report(Struct, frozen=True):
    """The data of a command's result. Commands that have nothing to say to programs answer with this empty one."""


class Status(Report, frozen=True):
    """`prism status`: everything at one moment."""

    engine: EngineName
    policy: PolicyName
    ready: bool
    unready: list[str]
    """Why it is not ready; empty if it is."""
    draining: str
    """Why new requests are refused; empty while they are not."""
    in_flight: int
    """Requests that have not been answered in full."""
    waiting: int
    """Requests that no worker has yet."""
    host_memory: HostMemoryStatus
    devices: list[DeviceStatus]
    """The devices whose memory is accounted for; on a CPU, usually none."""
    loading: dict[str, LoadStatus]
    """Loads under way, by model."""
    models: list[ModelStatus]
    workers: list[WorkerStatus]
    decisions: list[JournalEntry]
    """The latest entries of the journal, oldest first."""


class ModelsReport(Report, frozen=True):
    """`prism models`."""

    models: list[ModelStatus]


class WorkersReport(Report, frozen=True):
    """`prism workers`."""

    workers: list[WorkerStatus]


class ModelReport(Report, frozen=True):
    """`prism activate` and `prism evict`."""

    model: str


class PolicyReport(Report, frozen=True):
    """`prism policy`."""

    policy: PolicyName


class StopReport(Report, frozen=True):
    """`prism stop`."""

    in_flight: int
    """Requests that had not been answered in full when it was asked to stop."""


R = TypeVar("R", bound=Report)


def result(ok: bool, text: str, report: Report, seconds: float) -> CommandResult:
    """A command's result as it goes over the admin socket. `seconds` is how long the command took."""
    return CommandResult(ok, text, msgspec.json.encode(report), seconds)


def read(answer: CommandResult, kind: type[R]) -> R:
    """The report that a command was answered with.

    Raises:
        OperatorError: the command failed, or the gateway is of a version that reports something else.
    """
    if not answer.ok:
        raise OperatorError(answer.text)
    try:
        return msgspec.json.decode(answer.data, type=kind)
    except msgspec.DecodeError as error:
        raise OperatorError(f"the gateway's answer does not fit this version of prism: {error}") from error
