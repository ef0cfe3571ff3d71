"""One look at a device's workers and memory: what the scheduler asks of every device at every event.

A look holds until a worker of the device changes its phase or its ledger changes. It has nothing that changes with
time, with requests, or with what is learned of models.
"""

from __future__ import annotations

from dataclasses import dataclass

from scheduler.state.state import FREE, MAPPED, SERVING, Device, Phase, State, Worker

NEARLY_BLANK = frozenset({Phase.STARTING, Phase.BLANK, Phase.BLANKING})
LEAVING = frozenset({Phase.DRAINING, Phase.PARKING, Phase.PARKED})


@dataclass(slots=True)
class Look:
    ledger_changes: int
    """Those of the ledger that it has seen."""
    mapped: list[Worker]
    """Workers that have a model's weights, or are about to."""
    serving: list[Worker]
    preparing: list[Worker]
    free: list[Worker]
    """Blank and parked workers that are in no group."""
    room: int
    """Bytes that are free, or would be with every KV cache at the minimum; claims are not taken off."""
    nearly_blank: int
    """Workers that are blank or soon will be."""
    leaving: int
    """Workers that are parked or soon will be."""
    grown: int
    """Bytes that a blank worker holds above what its process held at first, at most."""
    kept: int
    """Bytes that no eviction brings beside a model that is not there: of pinned models, and blank workers."""


def look_at(state: State, device: Device) -> Look:
    look = device.look
    if look is None or look.ledger_changes != device.ledger.changes:
        look = device.look = fresh_look(state, device)
    return look


def fresh_look(state: State, device: Device) -> Look:
    here, ledger = state.on(device), device.ledger
    serving = [worker for worker in here if worker.phase in SERVING]
    shrinkable = sum(max(0, ledger[worker.number].kv - device.kv_minimum) for worker in serving)
    return Look(
        ledger.changes,
        mapped=[worker for worker in here if worker.phase in MAPPED],
        serving=serving,
        preparing=[worker for worker in here if worker.phase is Phase.PREPARING],
        free=[worker for worker in here if worker.phase in FREE and not worker.grouped],
        room=ledger.free + shrinkable,
        nearly_blank=sum(worker.phase in NEARLY_BLANK for worker in here),
        leaving=sum(worker.phase in LEAVING for worker in here),
        grown=max((ledger[w.number].held - (w.held_first or 0) for w in here if w.phase is Phase.BLANK), default=0),
        kept=kept_beside(state, device, here) if device.accounted else 0,
    )


def kept_beside(state: State, device: Device, workers: list[Worker]) -> int:
    """Bytes that these workers keep whatever is evicted, if one of the blank ones becomes another model's."""
    pinned = [worker for worker in workers if state.keeps_pinned(worker)]
    blank = sorted(worker.held_blank or 0 for worker in workers if not state.keeps_pinned(worker))
    accounts = [device.ledger[worker.number] for worker in pinned]
    kept = sum(account.held + account.weights + device.kv_minimum for account in accounts)
    return kept + sum(blank[:-1] if len(workers) == len(state.on(device)) else blank)
