"""What all policies do: activate on demand, make way for those who wait, let a busy model keep its worker for a while.

A model that wants a worker takes, in this order: a free one; one about to be free; an idle one, the least valuable
first (within its quantum a model counts as idle only after `linger` seconds); and after `drain_after` seconds a
busy one that has served for at least `quantum` seconds, which is drained first. So a wait is bounded by the quantum and
the longest running answer, and no model is swapped out right after it came in. Where host memory is what lacks,
victims are those whose weights can leave it, and whoever comes after waits. Where it is a device's memory, victims are
that device's, parked workers among them, and whoever comes after waits for that device.

A model on several devices takes a worker on each of as many. Those that are free are kept for it while others of its
choice are made to leave, so that it waits no longer than the slowest of them.

As it stands this is the policy `lru`. The others override which workers a model may have (`allows`), which of them it
takes (`place`), who goes first (`value`), and add to the plan (`improve`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import chain

from config.registry import Registry
from config.units import format_size
from scheduler.actions import Blank, Decision, Drain, Park, Recycle, Resume
from scheduler.forecast.kv_pressure import kv_use
from scheduler.memory import budget
from scheduler.memory.feasibility import obstacle
from scheduler.policies.blank_reserve import Upkeep
from scheduler.policies.cheapest_worker import Cost, FreeWorkers, Place, Prices
from scheduler.policies.groups import activation, group_in_the_way, parked_groups, spread
from scheduler.policies.plan_cache import PlanCache
from scheduler.policies.staging import PRIORITY_HEAD_START, can_come, can_make_room, first_come, is_staged, stage
from scheduler.state.entities import Device, Model, Request, Worker
from scheduler.state.phases import FREE, Phase
from scheduler.state.state import State

STARTING_PATIENCE = 5.0
"""Seconds for which a starting worker counts as about to be free."""
SOON_FREE = (Phase.STARTING, Phase.PARKING, Phase.BLANKING)


class _Leaving:
    """Workers that are about to be free. Each can be claimed by one of those who want one."""

    def __init__(self, state: State, now: float) -> None:
        self._state = state
        self._soon = [worker for worker in state.in_phase(*SOON_FREE) if _comes_soon(worker, now)]
        draining = (worker for worker in state.in_phase(Phase.DRAINING) if worker.leads)
        self._draining = [worker for worker in draining if worker.reserved_for is None]
        self.gathered: set[str] = set()
        """Devices that are kept for models on several."""

    def claim_soon(self, devices: Collection[str] | None = None) -> Worker | None:
        return self._claim(self._soon, devices)

    def claim_own(self, model: Model) -> Worker | None:
        """The worker that is being drained of `model` itself, for somebody who is not there any more."""
        own = next((w for w in self._draining if w.model == model.name and not w.evicting), None)
        if own is not None:
            self._draining.remove(own)
        return own

    def claim_draining(self, devices: Collection[str] | None = None) -> Worker | None:
        return self._claim(self._draining, devices)

    def _claim(self, workers: list[Worker], devices: Collection[str] | None) -> Worker | None:
        """The last that leaves any of the devices; None is all."""
        for worker in reversed(workers):
            if devices is None or _is_on(self._state, worker, devices):
                workers.remove(worker)
                return worker
        return None

    def claim_on(self, device: Device) -> None:
        """All that leave this device, whose memory is wanted."""
        self._draining = [worker for worker in self._draining if not _is_on(self._state, worker, (device.name,))]

    def unclaimed(self, state: State) -> Iterator[Worker]:
        """Drained for nobody, and not because another worker serves its model instead."""
        alone = (worker for worker in self._draining if not state.model_of(worker).workers)
        return (worker for worker in alone if worker.running and not worker.evicting)


class OnDemand:
    """`Policy`, of which a subclass says what it does otherwise."""

    elastic = False
    by_admission = False

    def __init__(self, registry: Registry) -> None:
        self._config = registry.scheduler
        self._upkeep = Upkeep(registry.pool)
        self._cache = PlanCache()
        self.drain_after = registry.scheduler.drain_after
        """Seconds for which a model waits for a worker before a busy one is drained for it."""

    def prepare(self, state: State) -> None:
        """Nothing to note at the start."""

    # what tells one policy from another

    def route(self, state: State, workers: Sequence[Worker], request: Request, now: float) -> Worker:
        """The one with the fewest requests."""
        return min(workers, key=lambda worker: len(worker.running))

    def allows(self, state: State, device: Device, model: Model) -> bool:
        """Whether the model may begin there, memory aside."""
        return True

    def place(self, state: State, worker: Worker, model: Model, now: float) -> tuple[float, ...]:
        """Cost of placing `model` on `worker`; of the free workers whose device has room, the cheapest wins."""
        return ()

    def place_at_least(self, state: State, worker: Worker, now: float) -> Place:
        """A bound of `place` for any model whose skeleton the worker does not keep."""
        return ()

    def comes_for(self, state: State, model: Model, now: float) -> float:
        """By how much the first of `place` exceeds that bound at least for this model."""
        return 0.0

    def narrowed(self, state: State, worker: Worker, model: Model, now: float, bound: Place, *, short: bool) -> Place:
        """A better bound of `place` than what these two give, if there is one; `short`, if somebody has to leave."""
        return bound

    def value(self, state: State, worker: Worker, now: float) -> float:
        """How valuable what an idle worker serves is: the least valuable is evicted first."""
        return worker.last_used

    def turn(self, state: State, model: Model) -> tuple[float, int]:
        """The order of those who wait for a worker: the least is seen to first."""
        return first_come(model)

    def rests(self, state: State, worker: Worker, now: float) -> bool:
        """Whether a worker counts as idle. Within its quantum a model keeps its worker between two requests."""
        unused, served = now - worker.replica.last_used, now - worker.replica.since
        return worker.idle and (unused >= self._config.linger or served >= self._config.quantum)

    def may_leave(self, state: State, worker: Worker) -> bool:
        """Whether a worker may be taken from its model for another."""
        return True

    def improve(self, state: State, now: float) -> Iterator[Decision]:
        """What is done once everybody who wants a worker was seen to."""
        yield from ()

    # the plan

    def plan(self, state: State, now: float) -> Iterator[Decision]:
        self._cache.forget()
        leaving = _Leaving(state, now)
        yield from self._serve_reserved(state, now, leaving)
        yield from self._serve_wanting(state, now, leaving)
        yield from self.improve(state, now)
        yield from self.park_idle(state, now)
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
            elif worker.phase in FREE and worker.grouped and not _could_serve(state, worker.replica.workers, model):
                yield Blank(worker.number, reason)
            elif worker.phase in FREE:
                found = [worker]
                if model.tensor_parallel > 1:
                    found = self._best_free(state, model, now, leaving.gathered, first=worker)
                yield from self._begin(state, model, found, now, leaving, reason)

    def _serve_wanting(self, state: State, now: float, leaving: _Leaving) -> Iterator[Decision]:
        memory_short = False
        awaited = {worker.device for worker in state.workers if _waits_for_memory(state, worker)}
        """Devices whose memory is being freed for somebody."""
        waiting = [state.models[name] for name in state.wanting]
        for model in sorted(waiting, key=lambda model: self.turn(state, model)):
            if now < model.retry_at or obstacle(state, model) or (memory_short and not model.kept):
                continue
            found = self._best_free(state, model, now, awaited | leaving.gathered)
            whole = len(found) == model.tensor_parallel
            if not whole and (_waits_for_reserved(state, model) or self._is_kept_waiting(state, model, now)):
                continue
            can_begin = whole or model.tensor_parallel > 1
            if can_begin and can_come(state, model, partial(self.turn, state)):
                yield from self._begin(state, model, found, now, leaving, "it is wanted")
                if is_staged(state, model):
                    awaited.update(worker.device for worker in found if worker.phase in FREE)
                continue
            # A worker is there, so it is host memory that lacks. Whoever comes after must not map what is being freed.
            memory_short = memory_short or can_begin
            yield from self._make_way(state, model, now, leaving, for_memory=can_begin)
        for worker in leaving.unclaimed(state):
            yield Resume(worker.number, "nobody needs its worker any more")

    def _is_kept_waiting(self, state: State, model: Model, now: float) -> bool:
        """Whether there are workers for it, and only others go first."""
        possible = _Possible(self, state, model)
        free = (w for w in self._free_workers(state, now).of(model) if w.device in possible)
        if _is_whole(spread(free, model.tensor_parallel), model):
            return True
        return any(possible.has_all(group) for group in parked_groups(state, model))

    def _free_workers(self, state: State, now: float) -> FreeWorkers:
        return self._cache.of(
            state, "free workers", lambda: FreeWorkers(state, lambda worker: self.place_at_least(state, worker, now))
        )

    def _best_free(
        self, state: State, model: Model, now: float, awaited: Collection[str] = (), first: Worker | None = None
    ) -> list[Worker]:
        """The free worker that suits `model` best: by `place`, then its own skeleton, a blank one, the oldest skeleton.

        One that the operator has named for it comes before all, and is the only one when no request waits; then those
        whose device has the memory. Devices that are `awaited` by others are left out. A model on several devices gets
        the best of each; fewer than it needs if there are not as many. `first` leads: the operator has named it.
        """

        def cost(worker: Worker) -> Cost:
            device = state.device_of(worker)
            return (
                worker.reserved_for is None,
                worker.number == model.avoid,
                budget.shortage(state, worker, model) > 0,
                self.place(state, worker, model, now),
                worker.model != model.name,
                worker.phase is not Phase.BLANK,
                -budget.room(state, device),
                worker.last_used,
            )

        def narrowed(bound: Cost, worker: Worker) -> Cost:
            if not bound:
                return bound
            named, avoided, short, place, *rest = bound
            assert isinstance(place, tuple)
            return (named, avoided, short, self.narrowed(state, worker, model, now, place, short=bool(short)), *rest)

        def cost_of_all(group: Sequence[Worker]) -> tuple[bool, Cost]:
            return (group[0].reserved_for is None, max(cost(worker) for worker in group))

        # A wish without a request is the operator's: it is fulfilled on the worker that was named, or not at all. Nor
        # does what the policy allows matter then.
        reserved_only = _waits_for_reserved(state, model)
        possible = _Possible(self, state, model, awaited, is_named=first is not None or reserved_only)
        prices = Prices(self.comes_for(state, model, now), cost, narrowed)
        free = self._free_workers(state, now).cheapest_first(model, lambda worker: worker.device in possible, prices)
        # A parked group serves again as a whole or not at all, so its workers are no candidates one by one. It competes
        # as one alternative, priced by its dearest worker, with the best loose worker of each device.
        groups = []
        if first is None or not first.grouped:
            groups.append(spread(free if first is None else chain([first], free), model.tensor_parallel))
        for parked in parked_groups(state, model):
            if first is parked[0] or (first is None and possible.has_all(parked)):
                groups.append(list(parked))
        whole = [group for group in groups if _is_whole(group, model)]
        best = min(whole, key=cost_of_all) if len(whole) > 1 else (whole or groups)[0]
        if first is None and reserved_only and best and best[0].reserved_for is None:
            return []
        return best

    def _make_way(
        self, state: State, model: Model, now: float, leaving: _Leaving, *, for_memory: bool
    ) -> Iterator[Decision]:
        """Have somebody leave a worker for `model`, unless somebody is about to."""
        possible = _devices_for(state, model, but=leaving.gathered)
        if leaving.claim_soon():
            return
        if own := leaving.claim_own(model):
            yield Resume(own.number, "nobody else needs its worker any more")
        elif not for_memory and (parked := group_in_the_way(state, possible)):
            yield Blank(parked.number, f"a worker is needed for {model.name}")
        elif idle := self.idle_victim(state, now, possible, for_memory=for_memory):
            yield Park(idle.number, f"idle {now - idle.last_used:.1f} s, needed for {model.name}")
        elif leaving.claim_draining():
            return
        elif victim := self._busy_victim(state, model, now, possible, for_memory=for_memory):
            yield Drain(victim.number, f"served {now - victim.since:.1f} s, {model.name} waits for a worker")

    def _begin(
        self, state: State, model: Model, found: Sequence[Worker], now: float, leaving: _Leaving, reason: str
    ) -> Iterator[Decision]:
        """Activate `model`, or do first what that takes: weights in host memory, workers, then room on the devices."""
        if not is_staged(state, model):
            if state.host.staging is None and can_make_room(state, model, partial(self.turn, state)):
                yield from stage(state, model, reason, partial(self.turn, state))
        elif not _is_whole(found, model):
            yield from self._gather(state, model, found, now, leaving)
        elif not (short := [worker for worker in found if budget.shortage(state, worker, model) > 0]):
            yield activation(found, model, reason)
        else:
            for worker in short:
                leaving.claim_on(state.device_of(worker))
                if worker.phase in FREE:
                    yield from self._clear_device(state, model, worker, now)

    def _gather(
        self, state: State, model: Model, found: Sequence[Worker], now: float, leaving: _Leaving
    ) -> Iterator[Decision]:
        """Keep what was found, and have somebody leave on as many more devices as `model` lacks."""
        if model.name in state.wanting and (own := leaving.claim_own(model)):
            yield Resume(own.number, "nobody else needs its workers any more")
            return
        # Each round has one replica leave, the cheapest kind first, which may free several devices at once. What was
        # found or is about to be free stays in `gathered`, so that nobody who comes later in this plan takes it: else
        # two models on several devices could each hold what the other one waits for.
        lacking, missing = self._lacks(state, model, found, leaving)
        reason = f"{model.name} needs {model.tensor_parallel} workers"
        while missing > 0:
            if soon := leaving.claim_soon(lacking):
                leaves = soon
            elif idle := self.idle_victim(state, now, lacking):
                leaves = idle
                yield Park(idle.number, f"idle {now - idle.last_used:.1f} s, {reason}")
            elif parked := group_in_the_way(state, lacking):
                leaves = parked
                yield Blank(parked.number, reason)
            elif draining := leaving.claim_draining(lacking):
                leaves = draining
            elif busy := self._busy_victim(state, model, now, lacking):
                leaves = busy
                yield Drain(busy.number, f"served {now - busy.since:.1f} s, {reason}")
            else:
                return
            devices = {worker.device for worker in leaves.replica.workers}
            missing -= len(lacking & devices)
            leaving.gathered |= lacking & devices
            lacking -= devices

    def _lacks(self, state: State, model: Model, found: Sequence[Worker], leaving: _Leaving) -> tuple[set[str], int]:
        """Devices on which somebody has to leave for `model`, and on how many of them; it keeps the others.

        Where it has a parked group that waits for its devices only, it is those.
        """
        named = found[0] if found and found[0].reserved_for is not None else None
        for group in parked_groups(state, model):
            own = {worker.device for worker in group}
            if named not in (None, group[0]):
                continue
            if _could_serve(state, group, model) and not own & leaving.gathered:
                leaving.gathered |= own
                lacking = {name for name in own if not self.allows(state, state.devices[name], model)}
                return lacking, len(lacking)
        leaving.gathered.update(worker.device for worker in found)
        return _devices_for(state, model, but=leaving.gathered), model.tensor_parallel - len(found)

    def _clear_device(self, state: State, model: Model, worker: Worker, now: float) -> Iterator[Decision]:
        """Evict from the worker's device until enough of its memory is on its way back."""
        device = state.device_of(worker)
        while (short := budget.shortage(state, worker, model)) > budget.coming(state, device):
            reason = f"{format_size(short)} of {device.name} needed for {model.name}"
            if idle := self.idle_victim(state, now, [device.name]):
                yield Park(idle.number, f"idle {now - idle.last_used:.1f} s, {reason}")
            elif parked := _parked_victim(state, device, worker):
                yield Blank(parked.number, reason)
            elif busy := self._busy_victim(state, model, now, [device.name]):
                yield Drain(busy.number, f"served {now - busy.since:.1f} s, {reason}")
            else:
                yield from _renewed(state, device, worker, model, reason)
                return

    def idle_victim(
        self, state: State, now: float, devices: Collection[str], *, for_memory: bool = False
    ) -> Worker | None:
        """The least valuable of the idle ones; `for_memory`, of those whose weights can leave host memory."""
        if len(devices) > 1:
            resting = self._cache.of(state, "resting", lambda: self._resting(state, state.devices, now))
        else:
            resting = self._resting(state, devices, now)
        return next((w for w in resting if _is_on(state, w, devices) and not (for_memory and _is_kept(state, w))), None)

    def _resting(self, state: State, devices: Collection[str], now: float) -> list[Worker]:
        """Idle workers that may be evicted, the least valuable first."""
        resting = (worker for worker in self._victims(state, devices) if self.rests(state, worker, now))
        return sorted(resting, key=lambda worker: self.value(state, worker, now))

    def _busy_victim(
        self, state: State, model: Model, now: float, devices: Collection[str], *, for_memory: bool = False
    ) -> Worker | None:
        """The one that serves longest, of those that have had their quantum and would not come back before `model`."""
        if now - model.wanted_since < self.drain_after:
            return None
        for worker in self._cache.of(state, "serving longest", lambda: self._serving_longest(state)):
            if now - worker.since < self._config.quantum:
                return None
            would_wait = now - PRIORITY_HEAD_START * state.model_of(worker).priority
            is_kept = for_memory and _is_kept(state, worker)
            if first_come(model)[0] <= would_wait and _is_on(state, worker, devices) and not is_kept:
                return worker
        return None

    def _serving_longest(self, state: State) -> list[Worker]:
        return sorted(self._victims(state, state.devices), key=lambda worker: worker.since)

    def _victims(self, state: State, devices: Collection[str]) -> Iterator[Worker]:
        """Active workers that may be evicted, by number."""
        if len(devices) == 1:
            here = [
                worker.replica.lead.number for name in devices for worker in state.view(state.devices[name]).serving
            ]
            workers = [state.workers[number] for number in sorted(here)]
        else:
            workers = state.in_phase(Phase.ACTIVE)
        for worker in workers:
            is_there = worker.phase is Phase.ACTIVE and _is_on(state, worker, devices)
            if is_there and _evictable(state, worker) and self.may_leave(state, worker):
                yield worker

    # memory that nobody needs

    def park_when_short(self, state: State, now: float, share: float) -> Iterator[Decision]:
        """One idle model of each device whose KV cache is needed by more than this share."""
        for device in state.devices.values():
            if kv_use(state, device) >= share and (victim := self.idle_victim(state, now, [device.name])):
                yield Park(victim.number, f"idle {now - victim.last_used:.0f} s, the KV cache of {device.name} is full")

    def park_idle(self, state: State, now: float) -> Iterator[Decision]:
        """Give back the memory of models that nobody has asked for in a while."""
        for worker in state.in_phase(Phase.ACTIVE):
            unused = now - worker.last_used
            if worker.idle and _evictable(state, worker) and unused >= self._config.idle_timeout:
                yield Park(worker.number, f"idle {unused:.0f} s")

    def _park_for_reserve(self, state: State, now: float) -> Iterator[Decision]:
        """With more models than workers, whoever comes next needs a blank one: make room before it is asked for."""
        homes = {worker.replica.model for worker in state.workers}
        if homes.issuperset(state.models):
            return
        for device in state.devices.values():
            if self._upkeep.missing(state, device) > state.view(device).leaving:
                idle = self.idle_victim(state, now, [device.name])
                # A pause between two requests is not idleness: its next one would find its worker gone.
                if idle is not None and now - idle.last_used >= self._config.quantum:
                    yield Park(idle.number, f"idle {now - idle.last_used:.1f} s, the reserve of blank workers is short")

    def _preload(self, state: State, now: float) -> Iterator[Decision]:
        if not state.host.required or state.host.staging is not None:
            return
        for model in (state.models[name] for name in state.to_preload):
            if now >= model.retry_at and can_make_room(state, model, partial(self.turn, state)):
                yield from stage(state, model, "preload", partial(self.turn, state))
                return


def _waits_for_reserved(state: State, model: Model) -> bool:
    return not model.queue and any(worker.reserved_for == model.name for worker in state.workers)


def _is_whole(workers: Sequence[Worker], model: Model) -> bool:
    return len(workers) == model.tensor_parallel


class _Possible:
    """Devices on which a model can begin, memory that others use aside; found out as they are asked for."""

    def __init__(
        self, policy: OnDemand, state: State, model: Model, but: Collection[str] = (), *, is_named: bool = False
    ) -> None:
        self._policy, self._state, self._model = policy, state, model
        self._but, self._is_named = but, is_named

    def __contains__(self, device: str) -> bool:
        if device in self._but:
            return False
        place = self._state.devices[device]
        return (self._is_named or self._policy.allows(self._state, place, self._model)) and budget.ever_fits(
            self._state, place, self._model
        )

    def has_all(self, workers: Sequence[Worker]) -> bool:
        return all(worker.device in self for worker in workers)


def _is_kept(state: State, worker: Worker) -> bool:
    return state.model_of(worker).kept


def _is_on(state: State, worker: Worker, devices: Collection[str]) -> bool:
    """Whether it is on one of the devices, or leads a group that is; a follower goes with its leader."""
    if not worker.grouped:
        return worker.device in devices
    return worker.leads and any(member.device in devices for member in worker.replica.workers)


def _could_serve(state: State, group: Sequence[Worker], model: Model) -> bool:
    """Whether a parked group can serve `model` again, as far as it is up to its own devices."""
    return group[0].model == model.name and all(
        budget.ever_fits(state, state.device_of(worker), model) for worker in group
    )


def _devices_for(state: State, model: Model, *, but: Collection[str]) -> set[str]:
    """Devices on which the model can be."""
    devices = (device for device in state.devices.values() if device.name not in but)
    return {device.name for device in devices if budget.ever_fits(state, device, model)}


def _comes_soon(worker: Worker, now: float) -> bool:
    """Whether a worker in one of the SOON_FREE phases will be free shortly."""
    if worker.reserved_for is not None:
        return False
    return worker.phase is not Phase.STARTING or now - worker.since < STARTING_PATIENCE


def _evictable(state: State, worker: Worker) -> bool:
    return worker.reserved_for is None and not state.keeps_pinned(worker)


def _waits_for_memory(state: State, worker: Worker) -> bool:
    """Whether a worker named by the operator waits for nothing else."""
    wanted = worker.reserved_for
    return wanted is not None and worker.phase in FREE and is_staged(state, state.models[wanted])


def _parked_victim(state: State, device: Device, wanted: Worker) -> Worker | None:
    """The least wanted skeleton of the device that takes memory, but for that of the worker for which it is needed."""
    parked = (
        worker
        for worker in state.on(device)
        if worker is not wanted
        and worker.phase is Phase.PARKED
        and worker.replica.lead.reserved_for is None
        and budget.gain_of_blanking(state, worker) > 0
    )
    victim = min(parked, key=lambda worker: worker.last_used, default=None)
    return victim and victim.replica.lead


def _renewed(state: State, device: Device, wanted: Worker, model: Model, reason: str) -> Iterator[Decision]:
    """With nobody left to evict: a worker that holds more than it would anew."""
    if wanted.phase is Phase.PARKED and state.account(wanted).held > budget.held_when_active(device, model):
        yield Blank(wanted.replica.lead.number, reason)
        return
    blank = (worker for worker in state.on(device) if worker.phase is Phase.BLANK and worker.reserved_for is None)
    worn = max(blank, key=lambda worker: budget.grown(state, worker), default=None)
    if worn is not None and budget.grown(state, worn) > 0:
        yield Recycle(worn.number, reason)


def _free(worker: Worker, reason: str) -> Decision:
    return Drain(worker.number, reason) if worker.running else Park(worker.number, reason)
