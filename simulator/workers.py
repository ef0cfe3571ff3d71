"""The simulated workers of the pool: what each is doing, and which of them serve a model together."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.engine import VirtualEngine

IDLE, PREFILL, DECODE = "idle", "prefill", "decode"


@dataclass(slots=True, eq=False)
class VirtualWorker:
    """A worker. It has an `engine` while it serves a model; workers that serve a model together share one engine."""

    number: int
    device: str
    skeleton: str | None = None
    """The model that is active or parked in the worker."""
    engine: VirtualEngine | None = None
    kv_limit: int = 0
    """Limit of the KV cache on its device, in bytes."""
    leader: VirtualWorker = field(init=False, repr=False)
    """The worker that represents its group; itself if it serves alone."""
    group: tuple[VirtualWorker, ...] = field(init=False, repr=False)
    """A leader's group: itself and the workers that serve with it."""
    run_event: int = 0
    """Number of the scheduled event that ends the engine's run; such events with another number are stale."""

    prefilled: int = 0
    """Prompt tokens prefilled since the process began, by engines that are gone."""
    decoded: int = 0
    """Tokens decoded since the process began, by engines that are gone."""
    used: set[str] = field(default_factory=set)
    """Models that the process has served."""

    def __post_init__(self) -> None:
        self.leader, self.group = self, (self,)

    @property
    def busy(self) -> bool:
        return self.engine is not None and self.engine.run is not None

    @property
    def doing(self) -> str:
        """The kind of load it puts on its device: IDLE, PREFILL or DECODE."""
        if self.engine is None or self.engine.run is None:
            return IDLE
        return PREFILL if self.engine.run.pieces else DECODE

    def served(self, now: float) -> tuple[int, int]:
        """Tokens prefilled and decoded since the process began."""
        prefilled, decoded = self.engine.served(now) if self.engine is not None else (0, 0)
        return self.prefilled + prefilled, self.decoded + decoded

    def join(self, others: tuple[VirtualWorker, ...]) -> None:
        """Make this worker the leader of a group with `others`."""
        self.group = (self, *others)
        for member in self.group:
            member.leader = self

    def part(self) -> None:
        """Dissolve the group."""
        for member in self.group:
            member.leader, member.group = member, (member,)

    def put_engine(self, engine: VirtualEngine, kv_limit: int) -> None:
        """Give the whole group one engine, with a KV cache of `kv_limit` bytes on each device."""
        for member in self.group:
            member.engine, member.kv_limit = engine, kv_limit

    def drop_engine(self, now: float) -> None:
        """Take the model from the group; requests in its engine are lost."""
        self.prefilled, self.decoded = self.served(now)
        self.run_event = 0
        if self.engine is not None and self.skeleton is not None and not self.engine.first_use:
            self.used.add(self.skeleton)
        for member in self.group:
            member.engine = None
