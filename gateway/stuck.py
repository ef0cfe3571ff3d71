"""Ends workers that answer pings and yet never finish what they were told to do."""

from __future__ import annotations

from enginepool.pool.supervisor import Supervisor
from scheduler.state.phases import Phase
from scheduler.state.state import State

TRANSITIONS = frozenset({Phase.ACTIVATING, Phase.PARKING, Phase.BLANKING})


def kill_stuck(pool: Supervisor, state: State, limit: float, now: float) -> None:
    """Kill each worker that has been in one transition for more than `limit` seconds."""
    for worker in state.workers:
        if (worker.phase in TRANSITIONS or worker.tearing) and worker.since < now - limit:
            pool.kill(worker.number, f"{worker.phase} for more than {limit:g} s")
    for isolation in state.isolations.values():
        if isolation.phase in TRANSITIONS and isolation.since < now - limit:
            pool.kill(isolation.worker, f"{isolation.phase} for more than {limit:g} s")
