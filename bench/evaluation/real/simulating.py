"""Simulates a run with the same registry, trace, capacity and objectives."""

from __future__ import annotations

from bench.evaluation.real.judging import Ended, simulated
from config.device_memory import SHARE
from config.registry import Registry
from simulator.calibration import Calibration
from simulator.models import costs_of, on_gpus
from simulator.simulation import Simulation
from simulator.traces.trace import Trace


def simulate(registry: Registry, trace: Trace, calibration: Calibration, *, mps: bool, after: float) -> list[Ended]:
    """Simulate the run; returns the requests that arrive no earlier than `after` seconds. Takes about a second per
    several hundred requests.

    Raises:
        StudyError: a model's shape cannot be simulated.
    """
    capacity = registry.pool.device_memory or int(SHARE * calibration.memory_bytes)
    simulation = Simulation(
        on_gpus(registry, None, None),
        costs_of(registry.models, calibration),
        calibration,
        capacity=capacity,
        mps=mps,
        warmed=True,
    )
    return simulated(simulation.run(trace).answers, after)
