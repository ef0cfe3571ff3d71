"""Who may have how much KV cache.

While an activation waits for memory, its neighbours' limits are lowered for it; else what is free is shared out evenly
among the models of the device. A memory that is not accounted is split into equal parts once and for all.
"""

from __future__ import annotations

from collections.abc import Iterator

from config.registry import Pool
from scheduler.actions import SetKvLimit
from scheduler.events import LimitApplied
from scheduler.learned.kv_pressure import kv_needed
from scheduler.memory import budget
from scheduler.state.entities import Device, Worker
from scheduler.state.phases import SERVING
from scheduler.state.state import State

LEAST_CHANGE = 256 * 2**20
"""Bytes; and as a share of the limit:"""
LEAST_SHARE = 0.1
"""Limits that would move by less stay: a change costs the engine prefix cache, or a step's time."""

ENOUGH = 0.75
"""A limit stays unchanged while what is needed is at most this share of it."""
IDLE_USE = 64 * 2**20
"""Bytes that a worker is taken to use at least, so that one that begins has room to."""


class KvLimits:
    """Each method returns, one by one, the limits that workers are to be told."""

    def __init__(self, state: State, pool: Pool, *, elastic: bool) -> None:
        self._state = state
        self._pool = pool
        self._elastic = elastic

    def settle(self, device: Device, now: float) -> Iterator[SetKvLimit]:
        """Reserve memory for activations that wait for it, as far as it is free; then see to the limits."""
        if not device.accounted:
            return
        waiting = budget.claims(self._state, device)
        while waiting and self._grant(device, waiting[0]):
            waiting.pop(0)
        if waiting:
            yield from self._make_room(device)
        else:
            yield from self._share_out(device, now)

    def activated(self, worker: Worker) -> Iterator[SetKvLimit]:
        """Where memory is not accounted, every worker of a device has the same part."""
        for member in worker.replica.workers:
            if not self._state.device_of(member).accounted:
                yield self._tell(member, self._pool.kv_memory // self._pool.workers_per_device)

    def answered(self, worker: Worker, answer: LimitApplied, now: float) -> bool:
        """Note what became of a limit. False when the worker could not keep to the newest one in time."""
        account = self._state.account(worker)
        if answer.revision != account.revision or worker.phase not in SERVING:
            return True
        worker.kv_mapped = answer.mapped
        if answer.applied:
            self._state.device_of(worker).ledger.confirm(worker.number, answer.revision, answer.mapped)
        else:
            worker.keeps_kv_until = now + self._pool.shrink_timeout
        return answer.applied

    def take_back(self, device: Device) -> Iterator[SetKvLimit]:
        """Give those their limits back that were lowered and have not confirmed it."""
        for worker in self._serving(device):
            account = self._state.account(worker)
            if account.limit < account.kv:
                yield self._tell(worker, account.kv)

    def _grant(self, device: Device, worker: Worker) -> bool:
        model = self._state.model_of(worker)
        if not device.ledger.fits(budget.need(self._state, worker, model)):
            return False
        assert worker.pending is not None
        worker.pending.granted = True
        held = max(device.ledger[worker.number].held, budget.held_when_active(device, model))
        device.ledger.reserve(worker.number, held=held, weights=model.shard_bytes, limit=device.kv_minimum)
        return True

    def _make_room(self, device: Device) -> Iterator[SetKvLimit]:
        """Lower limits by what is wanted, first where the KV cache is not used."""
        serving = self._serving(device)
        accounts = [self._state.account(worker) for worker in serving]
        wanted = budget.claimed(self._state, device) - device.ledger.free - sum(a.kv - a.limit for a in accounts)
        limits = {worker.number: device.ledger[worker.number].limit for worker in serving}
        # Cache that is not mapped is had for nothing; the rest costs prefixes that would have saved a prefill. So what
        # all neighbours leave unused goes first, and only then what they use, down to the minimum.
        by_unused = sorted(serving, key=lambda worker: worker.kv_mapped - limits[worker.number])
        for floors in ({w.number: w.kv_mapped for w in serving}, {}):
            for worker in by_unused:
                least = max(device.kv_minimum, floors.get(worker.number, 0))
                taken = max(0, min(wanted, limits[worker.number] - least))
                limits[worker.number] -= taken
                wanted -= taken
        for worker in serving:
            if limits[worker.number] < device.ledger[worker.number].limit:
                yield self._tell(worker, limits[worker.number])

    def _share_out(self, device: Device, now: float) -> Iterator[SetKvLimit]:
        serving, ledger = self._serving(device), device.ledger
        if not serving or (self._elastic and self._all_have_enough(device, serving)):
            return
        shares = self._shares(device, serving)
        for worker in serving:
            limit, share = ledger[worker.number].limit, shares[worker.number]
            if share < limit and (ledger.free < 0 or (_matters(limit, share) and now >= worker.keeps_kv_until)):
                yield self._tell(worker, share)
        # What is lowered counts as taken until its worker confirms: only what is free now can be given to others.
        for worker in serving:
            account = ledger[worker.number]
            reach = min(shares[worker.number], account.kv + max(0, ledger.free))
            if reach > account.limit and _matters(account.limit, reach):
                yield self._tell(worker, reach)

    def _shares(self, device: Device, serving: list[Worker]) -> dict[int, int]:
        """What each should have of what weights and workers leave: equal parts, or by what it has use for."""
        least = device.kv_minimum
        room = device.ledger.free + sum(device.ledger[worker.number].kv for worker in serving)
        if room <= least * len(serving):
            return dict.fromkeys((worker.number for worker in serving), least)
        uses = {worker.number: IDLE_USE + kv_needed(self._state, worker) for worker in serving}
        spare = room - least * len(serving)
        shares = {}
        for worker in serving:
            if worker.replica.rehearsing:  # what it had beyond its need could not be had back when a neighbour wants it
                more = int(min(spare, max(0, uses.pop(worker.number) - least)))
                shares[worker.number] = least + more
                spare -= more
        total = sum(uses.values())
        for number, use in uses.items():
            shares[number] = least + (int(spare * use / total) if self._elastic else spare // len(uses))
        return shares

    def _all_have_enough(self, device: Device, serving: list[Worker]) -> bool:
        """A change costs a neighbour its prefix cache: none without need, or memory that is given to nobody."""
        if not 0 <= device.ledger.free < LEAST_CHANGE:
            return False
        return all(kv_needed(self._state, w) <= ENOUGH * device.ledger[w.number].limit for w in serving)

    def _serving(self, device: Device) -> list[Worker]:
        return self._state.view(device).serving

    def _tell(self, worker: Worker, nbytes: int) -> SetKvLimit:
        revision = self._state.device_of(worker).ledger.set_limit(worker.number, nbytes)
        return SetKvLimit(worker.number, revision, nbytes)


def _matters(limit: int, other: int) -> bool:
    change = abs(other - limit)
    return change >= LEAST_CHANGE and change >= LEAST_SHARE * limit
