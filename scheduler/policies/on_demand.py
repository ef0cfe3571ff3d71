"""The policy `lru`: activate on demand, evict the least recently used, let a busy model keep its worker for a while.

A model that wants a worker takes, in this order: a free one; one about to be free; an idle one, the least recently
used first (within its quantum a model counts as idle only after `linger` seconds); and after `drain_after` seconds a
busy one that has served for at least `quantum` seconds, which is drained first. So a wait is bounded by the quantum and
the longest running answer, and no model is swapped out right after it came in. Where host memory is what lacks,
victims are those whose weights can leave it, and whoever comes after waits. Where it is a device's memory, victims are
that device's, parked workers among them, and whoever comes after waits for that device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from config.registry import SchedulerConfig
from scheduler import memory
from scheduler.actions import Activate, Blank, Decision, Drain, Park, Resume, Stage, Unstage
from scheduler.obstacles import obstacle
from scheduler.state import FREE, MAPPED, Device, Model, Phase, State, Worker
from scheduler.upkeep import Upkeep

STARTING_PATIENCE = 5.0
"""Seconds for which a starting worker counts as about to be free."""
PRIORITY_HEAD_START = 1.0
"""Seconds that one step of priority is worth among those who wait for a worker."""


class _Leaving:
    """Workers that are about to be free. Each can be claimed by one of those who want one."""

    def __init__(self, state: State, now: float) -> None:
        self._soon = sum(1 for worker in state.workers if _comes_soon(worker, now))
        self._draining = [w for w in state.workers if w.phase is Phase.DRAINING and w.reserved_for is None]

    def claim_soon(self) -> bool:
        self._soon -= 1
        return self._soon >= 0

    def claim_own(self, model: Model) -> Worker | None:
        """The worker that is being drained of `model` itself, for somebody who is not there any more."""
        own = next((w for w in self._draining if w.model == model.name and not w.evicting), None)
        if own is not None:
            self._draining.remove(own)
        return own

    def claim_draining(self) -> bool:
        return bool(self._draining) and self._draining.pop() is not None

    def claim_on(self, device: Device) -> None:
        """All that leave this device, whose memory is wanted."""
        self._draining = [worker for worker in self._draining if worker.device != device.name]

    def unclaimed(self) -> Iterator[Worker]:
        return (worker for worker in self._draining if worker.running and not worker.evicting)


class LruPolicy:
    def __init__(self, config: SchedulerConfig, upkeep: Upkeep) -> None:
        self._config = config
        self._upkeep = upkeep

    def plan(self, state: State, now: float) -> Iterator[Decision]:
        leaving = _Leaving(state, now)
        yield from self._serve_reserved(state, now, leaving)
        yield from self._serve_wanting(state, now, leaving)
        yield from self._park_idle(state, now)
        yield from self._park_for_reserve(state, now)
        yield from self._upkeep.plan(state)
        yield from self._preload(state, now)

    # workers for those who want one

    def _serve_reserved(self, state: State, now: float, leaving: _Leaving) -> Iterator[Decision]:
        """Workers that an operator has asked for by number."""
        for worker in state.workers:
            if worker.reserved_for is None:
                continue
            reason = f"the operator wants {worker.reserved_for} there"
            model = state.models[worker.reserved_for]
            if worker.phase is Phase.ACTIVE:
                yield _free(worker, reason)
            elif worker.phase in FREE:
                yield from self._begin(state, model, worker, now, leaving, reason)

    def _serve_wanting(self, state: State, now: float, leaving: _Leaving) -> Iterator[Decision]:
        memory_short = False
        awaited = {worker.device for worker in state.workers if _waits_for_memory(state, worker)}
        """Devices whose memory is being freed for somebody."""
        for model in sorted((state.models[name] for name in state.wanting), key=_turn):
            if now < model.retry_at or obstacle(state, model) or (memory_short and not model.kept):
                continue
            free = best_free(state, model, awaited)
            if free is None and (_waits_for_reserved(state, model) or best_free(state, model)):
                continue
            if free is not None and _memory_can_come(state, model):
                yield from self._begin(state, model, free, now, leaving, "it is wanted")
                if free.phase in FREE and _is_staged(state, model):
                    awaited.add(free.device)
                continue
            # Whoever comes after must not map the memory that is being freed for this one.
            memory_short = memory_short or free is not None
            yield from self._make_way(state, model, now, leaving, for_memory=free is not None)
        for worker in leaving.unclaimed():
            yield Resume(worker.number, "nobody needs its worker any more")

    def _make_way(
        self, state: State, model: Model, now: float, leaving: _Leaving, *, for_memory: bool
    ) -> Iterator[Decision]:
        """Have somebody leave a worker for `model`, unless somebody is about to."""
        possible = [device.name for device in state.devices.values() if memory.ever_fits(state, device, model)]
        if leaving.claim_soon():
            return
        if own := leaving.claim_own(model):
            yield Resume(own.number, "nobody else needs its worker any more")
        elif idle := self._idle_victim(state, now, possible, for_memory=for_memory):
            yield Park(idle.number, f"idle {now - idle.last_used:.1f} s, needed for {model.name}")
        elif leaving.claim_draining():
            return
        elif victim := self._busy_victim(state, model, now, possible, for_memory=for_memory):
            yield Drain(victim.number, f"served {now - victim.since:.1f} s, {model.name} waits for a worker")

    def _begin(
        self, state: State, model: Model, worker: Worker, now: float, leaving: _Leaving, reason: str
    ) -> Iterator[Decision]:
        """Activate `model`, or do first what that takes: weights in host memory, then room on the device."""
        if not _is_staged(state, model):
            if state.host.staging is None and _can_make_room(state, model):
                yield from _stage(state, model, reason)
        elif memory.shortage(state, worker, model) <= 0:
            yield Activate(worker.number, model.name, reason)
        else:
            leaving.claim_on(state.devices[worker.device])
            yield from self._clear_device(state, model, worker, now)

    def _clear_device(self, state: State, model: Model, worker: Worker, now: float) -> Iterator[Decision]:
        """Evict from the worker's device until enough of its memory is on its way back."""
        device = state.devices[worker.device]
        while memory.shortage(state, worker, model) > memory.coming(state, device):
            reason = f"the memory of {device.name} is needed for {model.name}"
            if idle := self._idle_victim(state, now, [device.name], for_memory=False):
                yield Park(idle.number, reason)
            elif parked := _parked_victim(state, device, worker):
                yield Blank(parked.number, reason)
            elif busy := self._busy_victim(state, model, now, [device.name], for_memory=False):
                yield Drain(busy.number, reason)
            else:
                return

    def _idle_victim(self, state: State, now: float, devices: Collection[str], *, for_memory: bool) -> Worker | None:
        """The least recently used one. Within its quantum a model keeps its worker between two requests."""
        idle = (
            worker
            for worker in _victims(state, devices, for_memory=for_memory)
            if worker.idle
            and (now - worker.last_used >= self._config.linger or now - worker.since >= self._config.quantum)
        )
        return min(idle, key=lambda worker: worker.last_used, default=None)

    def _busy_victim(
        self, state: State, model: Model, now: float, devices: Collection[str], *, for_memory: bool
    ) -> Worker | None:
        """The one that serves longest, of those that have had their quantum and would not come back before `model`."""
        if now - model.wanted_since < self._config.drain_after:
            return None
        busy = (
            worker
            for worker in _victims(state, devices, for_memory=for_memory)
            if now - worker.since >= self._config.quantum
            and _turn(model)[0] <= now - PRIORITY_HEAD_START * state.models[worker.model or ""].priority
        )
        return min(busy, key=lambda worker: worker.since, default=None)

    # memory that nobody needs

    def _park_idle(self, state: State, now: float) -> Iterator[Decision]:
        for worker in state.workers:
            unused = now - worker.last_used
            if worker.idle and _evictable(state, worker) and unused >= self._config.idle_timeout:
                yield Park(worker.number, f"idle {unused:.0f} s")

    def _park_for_reserve(self, state: State, now: float) -> Iterator[Decision]:
        """With more models than workers, whoever comes next needs a blank one: make room before it is asked for."""
        homes = {worker.model for worker in state.workers}
        if homes.issuperset(state.models):
            return
        for device in state.devices.values():
            leaving = sum(w.phase in (Phase.DRAINING, Phase.PARKING, Phase.PARKED) for w in state.on(device))
            if self._upkeep.missing(state, device) > leaving:
                idle = self._idle_victim(state, now, [device.name], for_memory=False)
                # A pause between two requests is not idleness: its next one would find its worker gone.
                if idle is not None and now - idle.last_used >= self._config.quantum:
                    yield Park(idle.number, f"idle {now - idle.last_used:.1f} s, the reserve of blank workers is short")

    def _preload(self, state: State, now: float) -> Iterator[Decision]:
        if not state.host.required or state.host.staging is not None:
            return
        for model in (state.models[name] for name in state.to_preload):
            if now >= model.retry_at and _can_make_room(state, model):
                yield from _stage(state, model, "preload")
                return


def best_free(state: State, model: Model, awaited: Collection[str] = ()) -> Worker | None:
    """The free worker from which `model` is back soonest: its own skeleton, a blank one, the least wanted skeleton.

    One that the operator has named for it comes before all, and is the only one when no request waits; then those whose
    device has the memory. Devices that are `awaited` by others are left out.
    """

    def cost(worker: Worker) -> tuple[bool, bool, bool, bool, bool, int, float]:
        device = state.devices[worker.device]
        return (
            worker.reserved_for is None,
            worker.number == model.avoid,
            memory.shortage(state, worker, model) > 0,
            worker.model != model.name,
            worker.phase is not Phase.BLANK,
            -memory.room(state, device),
            worker.last_used,
        )

    places = (model.name,) if _waits_for_reserved(state, model) else (None, model.name)
    possible = {
        device.name
        for device in state.devices.values()
        if device.name not in awaited and memory.ever_fits(state, device, model)
    }
    free = (worker for worker in state.workers if worker.phase in FREE and worker.reserved_for in places)
    return min((worker for worker in free if worker.device in possible), key=cost, default=None)


def _waits_for_reserved(state: State, model: Model) -> bool:
    return not model.queue and any(worker.reserved_for == model.name for worker in state.workers)


def _turn(model: Model) -> tuple[float, int]:
    """First come, first served, with a head start by priority; so nobody starves, whatever the priorities are."""
    return (model.wanted_since - PRIORITY_HEAD_START * model.priority, model.index)


def _comes_soon(worker: Worker, now: float) -> bool:
    if worker.reserved_for is not None:
        return False
    if worker.phase is Phase.STARTING:
        return now - worker.since < STARTING_PATIENCE
    return worker.phase in (Phase.PARKING, Phase.BLANKING)


def _evictable(state: State, worker: Worker) -> bool:
    return worker.reserved_for is None and not state.keeps_pinned(worker)


def _victims(state: State, devices: Collection[str], *, for_memory: bool) -> Iterator[Worker]:
    """Active workers that may be evicted; `for_memory`, those whose weights can then leave host memory."""
    for worker in state.workers:
        if worker.phase is Phase.ACTIVE and worker.device in devices and _evictable(state, worker):
            kept = state.models[worker.model or ""].kept
            if not (for_memory and kept):
                yield worker


def _waits_for_memory(state: State, worker: Worker) -> bool:
    """Whether a worker named by the operator waits for nothing else."""
    wanted = worker.reserved_for
    return wanted is not None and worker.phase in FREE and _is_staged(state, state.models[wanted])


def _parked_victim(state: State, device: Device, wanted: Worker) -> Worker | None:
    """The least wanted skeleton of the device that takes memory, but for that of the worker for which it is needed."""
    parked = (
        worker
        for worker in state.on(device)
        if worker is not wanted
        and worker.phase is Phase.PARKED
        and worker.reserved_for is None
        and memory.gain_of_blanking(state, worker) > 0
    )
    return min(parked, key=lambda worker: worker.last_used, default=None)


def _free(worker: Worker, reason: str) -> Decision:
    return Drain(worker.number, reason) if worker.running else Park(worker.number, reason)


# host memory


def _stage(state: State, model: Model, reason: str) -> Iterator[Decision]:
    """Load a model, after dropping as many of the least wanted ones as it takes."""
    for victim in _unstageable(state, model):
        if _host_room(state, model) >= 0:
            break
        yield Unstage(victim.name, f"host memory is needed for {model.name}")
    yield Stage(model.name, reason)


def _is_staged(state: State, model: Model) -> bool:
    return model.staged or not state.host.required


def _memory_can_come(state: State, model: Model) -> bool:
    """Whether the model's weights are in host memory, on the way there, or could be without evicting anyone."""
    return _is_staged(state, model) or state.host.staging is not None or _can_make_room(state, model)


def _can_make_room(state: State, model: Model) -> bool:
    """Whether the weights fit after dropping those that no worker maps."""
    return _host_room(state, model) + sum(other.weight_bytes for other in _unstageable(state, model)) >= 0


def _host_room(state: State, model: Model) -> int:
    """Bytes that would be left with `model` in; negative when it does not fit."""
    return state.host.capacity - state.staged_bytes() - model.weight_bytes


def _unstageable(state: State, model: Model) -> list[Model]:
    """Models whose weights may go back to disk for `model`, the least wanted first.

    Of those that want a worker too, only the ones whose turn comes later.
    """
    mapped = {worker.model for worker in state.workers if worker.phase in MAPPED}
    candidates = [
        other
        for other in state.models.values()
        if other.staged
        and other is not model
        and other.name not in mapped
        and not other.kept
        and (other.name not in state.wanting or (model.name in state.wanting and _turn(model) < _turn(other)))
    ]
    return sorted(candidates, key=lambda other: (other.name in state.wanting, other.last_used))
