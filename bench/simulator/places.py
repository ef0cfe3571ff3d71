"""The pool's workers as the simulation sees them: what each is doing, and whose steps slow each other down."""

from __future__ import annotations

from dataclasses import dataclass

from bench.simulator.engine import Engine


@dataclass(slots=True, eq=False)
class Place:
    """A worker. `engine` is there while it serves a model."""

    worker: int
    device: str
    skeleton: str | None = None
    """The model whose process state it keeps, whether it serves it or not."""
    engine: Engine | None = None
    planned: int = 0
    """The number of the event that ends the engine's run; those with another are out of date."""

    prefilled: int = 0
    """Tokens of prompts since its process began, of engines that are gone; likewise, of answers:"""
    decoded: int = 0

    @property
    def busy(self) -> bool:
        return self.engine is not None and self.engine.run is not None

    def served(self, now: float) -> tuple[int, int]:
        """Tokens prefilled and decoded since its process began."""
        prefilled, decoded = self.engine.served(now) if self.engine is not None else (0, 0)
        return self.prefilled + prefilled, self.decoded + decoded

    def drop_engine(self, now: float) -> None:
        """The model is taken from it, and with it what its engine had under way."""
        self.prefilled, self.decoded = self.served(now)
        self.engine, self.planned = None, 0
