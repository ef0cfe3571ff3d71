"""The pool's workers as the simulation sees them: what each is doing, and whose steps slow each other down."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.engine import Engine

IDLE, PREFILL, DECODE = "idle", "prefill", "decode"


@dataclass(slots=True, eq=False)
class Place:
    """A worker. `engine` is there while it serves a model; those that serve one together have the same."""

    worker: int
    device: str
    skeleton: str | None = None
    """The model whose process state it keeps, whether it serves it or not."""
    engine: Engine | None = None
    kv_limit: int = 0
    """Bytes, of its device."""
    leader: Place = field(init=False, repr=False)
    """Who stands for it: itself, if it does not serve with others."""
    group: tuple[Place, ...] = field(init=False, repr=False)
    """Of a leader: itself, and those that serve with it."""
    planned: int = 0
    """The number of the event that ends the engine's run; those with another are out of date."""

    prefilled: int = 0
    """Tokens of prompts since its process began, of engines that are gone; likewise, of answers:"""
    decoded: int = 0
    used: set[str] = field(default_factory=set)
    """Models that its process has served."""

    def __post_init__(self) -> None:
        self.leader, self.group = self, (self,)

    @property
    def busy(self) -> bool:
        return self.engine is not None and self.engine.run is not None

    @property
    def doing(self) -> str:
        """As its neighbours feel it."""
        if self.engine is None or self.engine.run is None:
            return IDLE
        return PREFILL if self.engine.run.pieces else DECODE

    def served(self, now: float) -> tuple[int, int]:
        """Tokens prefilled and decoded since its process began."""
        prefilled, decoded = self.engine.served(now) if self.engine is not None else (0, 0)
        return self.prefilled + prefilled, self.decoded + decoded

    def join(self, others: tuple[Place, ...]) -> None:
        """From here on they serve together."""
        self.group = (self, *others)
        for place in self.group:
            place.leader = self

    def part(self) -> None:
        """Each is by itself again."""
        for place in self.group:
            place.leader, place.group = place, (place,)

    def put_engine(self, engine: Engine, kv_limit: int) -> None:
        """One for the whole group, each device of which has so much room for its KV cache."""
        for place in self.group:
            place.engine, place.kv_limit = engine, kv_limit

    def drop_engine(self, now: float) -> None:
        """The model is taken from its group, and with it what its engine had under way."""
        self.prefilled, self.decoded = self.served(now)
        self.planned = 0
        if self.engine is not None and self.skeleton is not None and not self.engine.first_use:
            self.used.add(self.skeleton)
        for place in self.group:
            place.engine = None
