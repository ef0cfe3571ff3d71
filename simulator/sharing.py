"""How engines share a GPU: each waits in turn for every other one that has something for it.

Without MPS the GPU is given to one process at a time, for a slice of time. With MPS the kernels of all run at once, and
what they take turns at is the GPU's memory and arithmetic, a kernel at a time: a small model's kernels wait longer for
a large model's than those do for them. While an engine does not need the GPU, because its host is not ready with the
next step, nobody waits for it, either way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.calibration import Calibration, Mps, TimeSlices
from simulator.lines import Line, longer

ROUNDS = 6
"""In which it is worked out how often each wants the GPU: it depends on how long it waits, and that on the others."""


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine's steps ask for. Seconds of a step, as if it were alone."""

    gpu: float
    """In which its kernels run;"""
    busy: float
    """those in which they use all of the GPU's memory bandwidth or arithmetic: the rest is latency."""
    host: float
    """The step takes no less."""
    layers: int


class Sharing(ABC):
    """`launch_per_neighbour`: launching a prefill's kernels takes 1 + this times as long for each busy neighbour."""

    launch_per_neighbour: float

    @abstractmethod
    def turn(self, load: Load) -> float:
        """Seconds for which the others wait when it is this one's turn."""

    @abstractmethod
    def stretched(self, gpu: Line, load: Load, waiting: float) -> Line:
        """Steps of which `gpu` are the kernels alone, if each of an engine's turns waits for so many seconds."""

    @abstractmethod
    def latency(self, load: Load) -> float:
        """Seconds of a step in which its kernels run, but nobody waits for them."""

    def waiting(self, own: Load, others: Sequence[Load]) -> float:
        """Seconds for which each turn of `own` waits for `others`."""
        if not others:
            return 0.0
        loads = [own, *others]
        turns = [self.turn(load) for load in loads]
        wanted = [1.0] * len(loads)
        for _ in range(ROUNDS):
            of_all = sum(turn * share for turn, share in zip(turns, wanted, strict=True))
            wanted = [
                self._wanted(load, of_all - turn * share)
                for load, turn, share in zip(loads, turns, wanted, strict=True)
            ]
        return sum(turn * share for turn, share in zip(turns[1:], wanted[1:], strict=True))

    def _wanted(self, load: Load, waiting: float) -> float:
        """The share of its time in which an engine waits for the GPU or has it."""
        seconds = self.stretched(Line(load.gpu), load, waiting).first
        return (seconds - self.latency(load)) / max(load.host, seconds)


@dataclass(frozen=True)
class InSlices(Sharing):
    """A step shorter than a slice gives up the rest of it."""

    slice_seconds: float
    switch_seconds: float
    launch_per_neighbour: float

    def turn(self, load: Load) -> float:
        return min(self.slice_seconds, load.gpu) + self.switch_seconds

    def stretched(self, gpu: Line, load: Load, waiting: float) -> Line:
        return longer(gpu.plus(waiting), gpu.times(1 + waiting / self.slice_seconds))

    def latency(self, load: Load) -> float:
        return 0.0


@dataclass(frozen=True)
class ByMps(Sharing):
    """A turn is what one layer needs of the GPU: layers have about as many kernels in every model."""

    wait_share: float
    launch_per_neighbour: float

    def turn(self, load: Load) -> float:
        return self.wait_share * load.busy / load.layers

    def stretched(self, gpu: Line, load: Load, waiting: float) -> Line:
        return gpu.plus(load.layers * waiting)

    def latency(self, load: Load) -> float:
        return max(0.0, load.gpu - load.busy)


def sharing_of(calibration: Calibration, *, mps: bool) -> Sharing:
    return _by_mps(calibration.mps) if mps else _in_slices(calibration.time_slices)


def _by_mps(entry: Mps) -> Sharing:
    return ByMps(entry.wait_share, entry.launch_per_neighbour)


def _in_slices(entry: TimeSlices) -> Sharing:
    return InSlices(entry.slice_seconds, entry.switch_seconds, entry.launch_per_neighbour)


@dataclass(frozen=True)
class Beside:
    """What is around an engine: on each of its devices, what its busy neighbours ask for."""

    sharing: Sharing | None
    devices: Sequence[Sequence[Load]]
    resident: bool
    """Whether other workers of its devices have a model, busy or not."""

    def stretched(self, gpu: Line, load: Load) -> Line:
        """An engine is as slow as on the device where it waits longest."""
        if self.sharing is None:
            return gpu
        waiting = max(self.sharing.waiting(load, others) for others in self.devices)
        return self.sharing.stretched(gpu, load, waiting)

    def launched(self, seconds: float) -> float:
        """Seconds of launching kernels that take so many without neighbours."""
        if self.sharing is None:
            return seconds
        return seconds * (1 + self.sharing.launch_per_neighbour * max(map(len, self.devices)))


ALONE = Beside(None, (), resident=False)
