"""What can happen. Every change reaches the scheduler as one of these, with the time beside it.

Requests and commands are named by the gateway's integers, workers by their number, models by their name.
Times are monotonic seconds, sizes bytes. `held` is what a worker has on its device besides weights and elastic KV
cache. Of workers that act as one, the leader's events hold for all; only deaths and KV limits are each one's own.
"""

from __future__ import annotations

from msgspec import Struct


class Event(Struct, frozen=True, tag=True):
    """Base of all events."""


class Arrived(Event, frozen=True):
    """A client asks for an answer of `model`."""

    request: int
    model: str
    prompt_tokens: int
    """An estimate; `Counted` brings the exact number."""
    deadline: float
    """When the first token is due."""
    body: str = ""
    """A digest of what is asked, by which it is known if it comes again; "" where nobody has one."""


class Counted(Event, frozen=True):
    request: int
    prompt_tokens: int


class FirstToken(Event, frozen=True):
    """The first bytes of the answer are on their way to the client: from here on it cannot be served elsewhere."""

    request: int


class Finished(Event, frozen=True):
    """The answer is complete."""

    request: int
    output_tokens: int


class Aborted(Event, frozen=True):
    """The client is gone. The gateway has told the worker already."""

    request: int


class WorkerBlank(Event, frozen=True):
    """A worker is warm and has no model: it is new, or `Blank` is done."""

    worker: int
    held: int = 0


class WorkerDead(Event, frozen=True):
    """A worker's process ended; another is being started in its place."""

    worker: int
    reason: str


class DeviceFault(Event, frozen=True):
    """All of a device's workers that share it by MPS have failed together; others are being started in their places."""

    device: str
    workers: tuple[int, ...]
    reason: str
    suspected: bool
    """Whether one of their requests may have caused it."""


class Copied(Event, frozen=True):
    """A worker that is activating has its weights, and goes on without the link. A worker may never say so."""

    worker: int


class Rehearsing(Event, frozen=True):
    """A worker begins or ends to try out a model that is new to the machine: it may not listen for many seconds."""

    worker: int
    begins: bool


class Activated(Event, frozen=True):
    worker: int
    model: str
    seconds: float
    held: int = 0


class ActivationFailed(Event, frozen=True):
    """The worker is blank again."""

    worker: int
    model: str
    reason: str
    held: int = 0


class Parked(Event, frozen=True):
    worker: int
    model: str
    held: int = 0


class LimitApplied(Event, frozen=True):
    """A worker has done what it could about a KV limit."""

    worker: int
    revision: int
    mapped: int
    applied: bool = True
    """False: it could not give back enough in time, and holds `mapped` bytes."""


class Staged(Event, frozen=True):
    """A model's weights are in host memory."""

    model: str
    nbytes: int


class StageFailed(Event, frozen=True):
    model: str
    reason: str


class Stats(Event, frozen=True):
    """What a worker says of itself, about once a second."""

    worker: int
    running: int
    waiting: int
    kv_bytes: int
    prompt_tokens: int
    output_tokens: int
    held: int = 0
    """Bytes of its device's memory besides weights and KV cache; 0 where nobody tells."""


class OperatorActivate(Event, frozen=True):
    """Answered by an `Answer` with the same command number, when it is done or has failed."""

    command: int
    model: str
    worker: int | None


class OperatorEvict(Event, frozen=True):
    """Answered by an `Answer`. `now` aborts what runs; else the model is drained first."""

    command: int
    model: str
    now: bool


class OperatorGone(Event, frozen=True):
    """Nobody waits for the command's answer any more."""

    command: int


class Tick(Event, frozen=True):
    """Time has passed."""


AnyEvent = (
    Arrived
    | Counted
    | FirstToken
    | Finished
    | Aborted
    | WorkerBlank
    | WorkerDead
    | DeviceFault
    | Copied
    | Rehearsing
    | Activated
    | ActivationFailed
    | Parked
    | LimitApplied
    | Staged
    | StageFailed
    | Stats
    | OperatorActivate
    | OperatorEvict
    | OperatorGone
    | Tick
)
