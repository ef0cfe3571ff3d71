"""A device's workers and memory at a glance: what the scheduler asks of every device at every event.

A view holds until a worker of the device changes its phase or its ledger changes; `State.view` keeps it that long. So
it has nothing that changes with time, with requests, or with what is learned of models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scheduler.state.entities import Device, Worker
from scheduler.state.phases import FREE, MAPPED, SERVING, Phase

NEARLY_BLANK = frozenset({Phase.STARTING, Phase.BLANK, Phase.BLANKING})
LEAVING = frozenset({Phase.DRAINING, Phase.PARKING, Phase.PARKED})


@dataclass(slots=True)
class DeviceView:
    ledger_changes: int
    """How many changes of the ledger it takes into account."""
    mapped: list[Worker]
    """Workers that have a model's weights, or are about to."""
    serving: list[Worker]
    preparing: list[Worker]
    free: list[Worker]
    """Blank and parked workers that are in no group."""
    room: int
    """Bytes that are free, or would be with every KV cache at the minimum; claims are not taken off."""
    nearly_blank: int
    """How many workers are blank or soon will be."""
    leaving: int
    """How many workers are parked or soon will be."""
    grown: int
    """The most bytes that any blank worker holds above what its process held at first."""
    kept: int
    """Bytes that no eviction frees for a model that is not there: those of pinned models and of blank workers."""


def view_of(device: Device, workers: Sequence[Worker], keeps_pinned: Callable[[Worker], bool]) -> DeviceView:
    """What is to be seen on a device with these `workers`."""
    ledger = device.ledger
    phases = [(worker, worker.replica.phase) for worker in workers]
    serving = [worker for worker, phase in phases if phase in SERVING]
    shrinkable = sum(max(0, ledger[worker.number].kv - device.kv_minimum) for worker in serving)
    blank = [worker for worker, phase in phases if phase is Phase.BLANK]
    return DeviceView(
        ledger.changes,
        mapped=[worker for worker, phase in phases if phase in MAPPED],
        serving=serving,
        preparing=[worker for worker, phase in phases if phase is Phase.PREPARING],
        free=[worker for worker, phase in phases if phase in FREE and not worker.grouped],
        room=ledger.free + shrinkable,
        nearly_blank=sum(phase in NEARLY_BLANK for _, phase in phases),
        leaving=sum(phase in LEAVING for _, phase in phases),
        grown=max((ledger[worker.number].held - (worker.held_first or 0) for worker in blank), default=0),
        kept=kept_beside(device, workers, keeps_pinned, one_leaves=True) if device.accounted else 0,
    )


def kept_beside(
    device: Device, workers: Sequence[Worker], keeps_pinned: Callable[[Worker], bool], *, one_leaves: bool
) -> int:
    """Bytes that `workers` keep whatever is evicted: pinned models with all that they have, others a blank process.

    If `one_leaves`, one of the others, the largest when blank, becomes the worker that the memory is wanted for.
    """
    pinned: list[Worker] = []
    others: list[Worker] = []
    for worker in workers:
        (pinned if keeps_pinned(worker) else others).append(worker)
    blank = sorted(worker.held_blank or 0 for worker in others)
    accounts = [device.ledger[worker.number] for worker in pinned]
    kept = sum(account.held + account.weights + device.kv_minimum for account in accounts)
    return kept + sum(blank[:-1] if one_leaves else blank)
