"""What the scheduler can decide. The gateway and the simulator carry these out, in order."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

RefusalKind = Literal["queue_full", "late", "unavailable", "fault", "crash"]


class Action(Struct, frozen=True, tag=True):
    """Base of all actions. `reason` is for people: it goes to the log and to `prism status`."""


class Dispatch(Action, frozen=True):
    """Give a waiting request to an active worker."""

    request: int
    worker: int


class Refuse(Action, frozen=True):
    """Answer a waiting request with an error, `retry_after` seconds; 0 if it should not come back."""

    request: int
    kind: RefusalKind
    reason: str
    retry_after: float


class Abort(Action, frozen=True):
    """End a running request with an error; its worker, if alive, must drop it."""

    request: int
    reason: str


class Activate(Action, frozen=True):
    """Bring `model` into a blank or parked worker. A policy leaves the KV limit to the scheduler."""

    worker: int
    model: str
    reason: str
    kv_limit: int = 0
    """Bytes on each device; 0 is none."""
    kv_revision: int = 0
    followers: tuple[int, ...] = ()
    """The other workers of a model on several devices, one on each; `worker` speaks for all of them."""


class Drain(Action, frozen=True):
    """Dispatch nothing more to an active worker; it is parked once nothing runs. Nothing to carry out."""

    worker: int
    reason: str


class Resume(Action, frozen=True):
    """Nobody needs a draining worker any more: it serves on. Nothing to carry out."""

    worker: int
    reason: str


class Park(Action, frozen=True):
    """Take the weights' memory from an active worker on which nothing runs."""

    worker: int
    reason: str


class Blank(Action, frozen=True):
    """Tear down a parked worker's skeleton."""

    worker: int
    reason: str


class Recycle(Action, frozen=True):
    """End the process of a worker that is blank, or has lost another of its group, and start one in its place."""

    worker: int
    reason: str
    isolated: bool = False
    """The new one shall share its GPU in turns, and not by MPS: what it does there harms nobody else."""


class SetKvLimit(Action, frozen=True):
    worker: int
    revision: int
    nbytes: int


class Stage(Action, frozen=True):
    """Load a model's weights into host memory."""

    model: str
    reason: str


class Unstage(Action, frozen=True):
    """Drop a model's weights from host memory; they are still on disk."""

    model: str
    reason: str


class Answer(Action, frozen=True):
    """The outcome of an operator's command."""

    command: int
    ok: bool
    text: str


Decision = Activate | Drain | Resume | Park | Blank | Recycle | Stage | Unstage
"""What a policy decides; the rest follows from events."""
AnyAction = Decision | Dispatch | Refuse | Abort | SetKvLimit | Answer
