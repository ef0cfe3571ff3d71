"""What the scheduler knows of, each by itself: requests, workers, models, devices, and the host's memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from scheduler.actions import Activate
from scheduler.learned.averages import Level
from scheduler.learned.estimates import RECENT, Demand
from scheduler.state.deadline_queue import DeadlineQueue
from scheduler.state.ledger import Ledger
from scheduler.state.phases import Phase

Charge = Literal["fault", "crash"]
"""A GPU's failure with all that ran there, or the end of one worker."""


@dataclass(slots=True)
class Known:
    """A request under which a worker has died: what asks for the same again is treated as it was."""

    until: float
    """When this is forgotten."""
    guilty: bool = False
    """It has ended a worker that served nothing else; else it may have."""


@dataclass(slots=True)
class Request:
    id: int
    model: str
    arrived: float
    deadline: float
    prompt_tokens: int
    worker: int | None = None
    dispatched: float = 0.0
    first_token_at: float | None = None
    alone: bool = False
    """It was dispatched to a worker that ran nothing else, beside idle neighbours."""
    disturbed: float = 0.0
    """Seconds that its neighbours had been busy in all when it had its first token."""
    kv_bytes: int = 0
    """Of KV cache that it was expected to come to when it was sent to its worker."""
    queued_on: set[str] = field(default_factory=set)
    """Devices in whose queue for admission it is."""
    deaths: int = 0
    """Workers that died with this request in them."""
    isolated: bool = False
    """It is neither queued nor on a worker of the pool, but in one of `State.isolations`, or waits for one."""
    body: str = ""
    """A digest of what is asked."""
    charge: Charge = "crash"
    """Of a suspect: what it may have caused."""


@dataclass(slots=True)
class Pending:
    """An activation that waits for memory, for the link, or for the end of another model's skeleton."""

    decision: Activate
    skeleton: str | None
    """The model whose skeleton the worker still keeps."""
    held: int
    """Bytes that the worker holds until then, besides weights and KV cache."""
    last_used: float
    """When the worker was used last: it may have another leader than then."""
    granted: bool = False
    """Whether its memory is reserved."""

    @property
    def revives(self) -> bool:
        return self.skeleton == self.decision.model

    @property
    def tearing(self) -> bool:
        """Another model's skeleton is being torn down, which takes neither memory nor the link. Groups do that when
        they begin.
        """
        return self.skeleton is not None and not self.revives and not self.decision.followers


@dataclass(slots=True, eq=False)
class Replica:
    """What serves a model, or may: one worker, or one on each of several devices, which act as one.

    Every worker is always in one. From the decision to activate a model on several devices until they are blank again,
    their workers share the replica of the first of them, which leads: it alone is told what all of them do.
    """

    workers: tuple[Worker, ...] = field(repr=False)
    """The leader first."""
    phase: Phase = Phase.STARTING
    since: float = 0.0
    """When it entered its phase; a process that dies while it starts does not begin anew."""
    model: str | None = None
    """The model it serves, or whose skeleton it keeps."""
    last_used: float = 0.0
    """When a request of its model last began or ended on it."""
    running: set[int] = field(default_factory=set)
    """Requests."""
    kv_promised: int = 0
    """Bytes of KV cache, on each of its devices, to which what it runs is expected to come."""
    copying: bool = False
    """While it is activating: its copy takes the link of each of its devices."""
    rehearsing: bool = False
    """It tries its model out, which is new to the machine, and may not give back KV cache for many seconds."""
    revived: bool = False
    """Its model's last activation found the skeleton there."""

    @property
    def lead(self) -> Worker:
        return self.workers[0]

    def begins(self, request: Request, now: float) -> None:
        """A request is sent to it. It counts with the KV cache that it is expected to come to."""
        self.running.add(request.id)
        self.kv_promised += request.kv_bytes
        self.last_used = now

    def expects(self, request: Request, kv_bytes: int) -> None:
        """What a request that it runs is expected to come to has changed."""
        self.kv_promised += kv_bytes - request.kv_bytes
        request.kv_bytes = kv_bytes

    def ends(self, request: Request) -> None:
        """It runs a request no more."""
        self.running.discard(request.id)
        self.kv_promised -= request.kv_bytes
        request.kv_bytes = 0


@dataclass(slots=True, eq=False)
class Worker:
    """A process on a device, with memory there. What it does it does with its replica."""

    number: int
    device: str
    pending: Pending | None = None
    """While it is preparing."""
    kv_mapped: int = 0
    """Bytes of KV cache, as last heard."""
    busy: Level = field(default_factory=lambda: Level(RECENT))
    """Of whether it runs requests."""
    decoded: int = 0
    """Tokens since its process began, as last heard."""
    keeps_kv_until: float = 0.0
    """It could not give back KV cache in time: before this moment it is not asked again without need."""
    held_blank: int | None = None
    """Bytes that it held when it was last blank; of one that never was, what another one of its device did."""
    held_first: int | None = None
    """Bytes that its process held when it was blank for the first time."""
    reserved_for: str | None = None
    """The model that an operator wants on this very worker."""
    evicting: bool = False
    """An operator wants it parked, whoever waits for its model."""
    replica: Replica = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.replica = Replica((self,))

    @property
    def phase(self) -> Phase:
        return self.replica.phase

    @property
    def model(self) -> str | None:
        """The model that its replica serves, or whose skeleton it keeps."""
        return self.replica.model

    @property
    def since(self) -> float:
        return self.replica.since

    @property
    def last_used(self) -> float:
        return self.replica.last_used

    @property
    def running(self) -> set[int]:
        return self.replica.running

    @property
    def leads(self) -> bool:
        """Whether it speaks for its replica; one by itself does."""
        return self.replica.workers[0] is self

    @property
    def grouped(self) -> bool:
        """Whether its replica has others."""
        return len(self.replica.workers) > 1

    @property
    def tearing(self) -> bool:
        """While it is preparing: what it keeps of another model is being torn down."""
        return self.pending is not None and self.pending.tearing

    @property
    def idle(self) -> bool:
        """Of a leader or one by itself: it serves, and has nothing to do."""
        replica = self.replica
        return replica.phase is Phase.ACTIVE and not replica.running and replica.workers[0] is self


@dataclass(slots=True)
class Isolation:
    """A worker that is apart from the pool, and what it serves: requests that may have ended others."""

    worker: int
    since: float
    """When it entered its phase."""
    waiting: list[int]
    running: set[int] = field(default_factory=set)
    alone: set[int] = field(default_factory=set)
    """Those that run beside no other."""
    model: str | None = None
    """The one that it serves, or whose skeleton it keeps."""
    phase: Phase = Phase.STARTING
    """Never preparing, draining or blanking."""
    deaths: int = 0
    """In a row, while nothing ran on it."""

    def enter(self, phase: Phase, now: float) -> None:
        self.phase, self.since = phase, now
        if phase in (Phase.STARTING, Phase.BLANK):
            self.model = None


@dataclass(slots=True)
class Model:
    name: str
    index: int
    """Place in the registry: the last tie-breaker."""
    priority: int
    pinned: bool
    preload: bool
    weight_bytes: int
    """In host memory, and on its devices together; an estimate from the files until it was loaded once."""
    kv_bytes: int
    """Of KV cache per token, on each of its devices; 0 is not known."""
    slo_tpot: float
    """Seconds per output token that it is to keep to."""
    demand: Demand
    tensor_parallel: int = 1
    """Devices over which its weights and KV cache are spread."""
    queue: DeadlineQueue = field(default_factory=DeadlineQueue)
    wanted_since: float = 0.0
    """When it began to want a worker; valid while it is in `State.wanting`."""
    workers: set[int] = field(default_factory=set)
    """Leaders of replicas that are preparing for this model, activating or active with it."""
    homes: frozenset[str] | None = None
    """Devices on which alone the policy has it served; None for all."""
    held: int | None = None
    """The most bytes that a worker held beside its weights and KV cache; None before it was active."""
    staged: bool = False
    last_used: float = 0.0
    failures: int = 0
    """Activations and loads that failed in a row."""
    retry_at: float = 0.0
    failure: str = ""
    dismissed: bool = False
    """An operator has evicted it, and nobody has asked for it since: it is not brought back ahead of its demand."""
    avoid: int | None = None
    """The worker on which its last activation failed."""
    activation_seconds: float = 0.0
    """Moving average of how long its activations took; 0 before the first."""
    service_seconds: float = 0.0
    """Moving average of a request's time from dispatch to end; 0 before the first."""

    @property
    def kept(self) -> bool:
        """Whether its weights stay in host memory once they are there."""
        return self.pinned or self.preload

    @property
    def shard_bytes(self) -> int:
        """Of weights on each of its devices."""
        return -(-self.weight_bytes // self.tensor_parallel)

    def kv_need(self, request: Request) -> int:
        """Bytes of KV cache, on each of its devices, to which one of its requests is expected to come."""
        return int((request.prompt_tokens + self.demand.output_tokens) * self.kv_bytes)

    def may_be_on(self, device: Device) -> bool:
        return self.homes is None or device.name in self.homes


@dataclass(slots=True)
class HostMemory:
    """The ledger of host shared memory, in bytes."""

    required: bool
    """Whether activations need weights there at all."""
    capacity: int
    staging: str | None = None
    """The model being loaded now: one at a time, since the disk is one."""
    staging_since: float = 0.0
    used: int = 0
    """Bytes in use or promised to the load under way."""
    kept: int = 0
    """Those of them that are never dropped. `State` sums both up whenever they change."""


@dataclass(slots=True)
class Device:
    name: str
    ledger: Ledger
    kv_minimum: int
    """Bytes of KV cache that an active model has at least."""
    workspace: int
    """Bytes that a model is taken to hold beside weights and KV cache, until it was measured."""
    copies: int | None
    """Copies of weights that may be under way at a time: they share its link. None is any number."""

    @property
    def accounted(self) -> bool:
        return self.ledger.capacity is not None
