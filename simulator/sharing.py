"""Models how engines share a GPU: each takes turns with every other engine that has work for it.

Without MPS, the GPU runs one process at a time, for a time slice each. With MPS, the kernels of all processes run
concurrently but take turns at memory bandwidth and arithmetic, one kernel at a time, so a small model's kernels wait
longer for a large model's than the other way round. Either way, nobody waits for an engine while it leaves the GPU idle
because its host is still preparing the next step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.calibration import Calibration, MpsSharing, TimeSlicing
from simulator.step_times import StepTimes, longer

ROUNDS = 6
"""Iterations of the fixed point in `Sharing.waiting`."""


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What one step of an engine needs, in seconds, when it runs alone."""

    gpu: float
    """Time its kernels run."""
    busy: float
    """The part of `gpu` that saturates the GPU's memory bandwidth or arithmetic; the rest is latency."""
    host: float
    """Time its host needs: a lower bound for the step."""
    layers: int


class Sharing(ABC):
    """A way of sharing. `launch_per_neighbour` is the relative slowdown of kernel launches per other busy engine."""

    launch_per_neighbour: float

    @abstractmethod
    def turn(self, load: StepLoad) -> float:
        """Seconds for which the other engines wait when it is this one's turn."""

    @abstractmethod
    def stretched(self, gpu: StepTimes, load: StepLoad, waiting: float) -> StepTimes:
        """Durations of steps whose kernels alone take `gpu`, if each of the engine's turns waits `waiting` seconds."""

    @abstractmethod
    def latency(self, load: StepLoad) -> float:
        """Seconds of a step in which its kernels run without making others wait."""

    def waiting(self, own: StepLoad, others: Sequence[StepLoad]) -> float:
        """Seconds that each turn of `own` waits for the turns of `others`."""
        if not others:
            return 0.0
        # How often an engine wants the GPU depends on how long it waits, which depends on how often the others want it:
        # hence a fixed point, approached from everybody always wanting it.
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

    def _wanted(self, load: StepLoad, waiting: float) -> float:
        """The share of time in which an engine has the GPU or waits for it."""
        seconds = self.stretched(StepTimes(load.gpu), load, waiting).first
        return (seconds - self.latency(load)) / max(load.host, seconds)


@dataclass(frozen=True)
class TimeSlicedSharing(Sharing):
    """Sharing without MPS. A step shorter than a time slice gives up the rest of its slice."""

    slice_seconds: float
    switch_seconds: float
    launch_per_neighbour: float

    def turn(self, load: StepLoad) -> float:
        return min(self.slice_seconds, load.gpu) + self.switch_seconds

    def stretched(self, gpu: StepTimes, load: StepLoad, waiting: float) -> StepTimes:
        # A step shorter than a slice waits once; a longer one waits once per slice.
        return longer(gpu.plus(waiting), gpu.times(1 + waiting / self.slice_seconds))

    def latency(self, load: StepLoad) -> float:
        return 0.0


@dataclass(frozen=True)
class MpsKernelSharing(Sharing):
    """Sharing with MPS. A turn is one layer's use of the GPU, as layers have about as many kernels in every model."""

    wait_share: float
    launch_per_neighbour: float

    def turn(self, load: StepLoad) -> float:
        return self.wait_share * load.busy / load.layers

    def stretched(self, gpu: StepTimes, load: StepLoad, waiting: float) -> StepTimes:
        return gpu.plus(load.layers * waiting)

    def latency(self, load: StepLoad) -> float:
        return max(0.0, load.gpu - load.busy)


def sharing_of(calibration: Calibration, *, mps: bool) -> Sharing:
    return _by_mps(calibration.mps) if mps else _in_slices(calibration.time_slices)


def _by_mps(entry: MpsSharing) -> Sharing:
    return MpsKernelSharing(entry.wait_share, entry.launch_per_neighbour)


def _in_slices(entry: TimeSlicing) -> Sharing:
    return TimeSlicedSharing(entry.slice_seconds, entry.switch_seconds, entry.launch_per_neighbour)


@dataclass(frozen=True)
class Contention:
    """What an engine competes with: on each of its devices, the loads of the other busy engines."""

    sharing: Sharing | None
    devices: Sequence[Sequence[StepLoad]]
    resident: bool
    """Whether other workers of its devices have an active model, busy or not."""

    def stretched(self, gpu: StepTimes, load: StepLoad) -> StepTimes:
        """Durations of steps under contention; on several devices, the one with the longest waits determines them."""
        if self.sharing is None:
            return gpu
        waiting = max(self.sharing.waiting(load, others) for others in self.devices)
        return self.sharing.stretched(gpu, load, waiting)

    def launched(self, seconds: float) -> float:
        """Seconds to launch kernels under contention that take `seconds` without it."""
        if self.sharing is None:
            return seconds
        return seconds * (1 + self.sharing.launch_per_neighbour * max(map(len, self.devices)))


ALONE = Contention(None, (), resident=False)
