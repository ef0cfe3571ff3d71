"""The policy `prism`: idle memory is used for second copies of models, and each request goes where it disturbs least.

A model that is active on several devices needs no migration when demand shifts: the next request is simply sent to
where fewer others are busy, since co-location costs compute, not only memory. So, while memory is idle, models are
activated ahead of their demand, the most wanted first, those without any worker before all others. Copies are given up
as soon as somebody has a better use for their memory: an idle one is evicted by value, which weighs how soon it would
be missed, how long it takes to come back, whether another device has it too, and how many bytes it frees. Where there
is no room for copies, and models make each other late, two swap places. A model whose demand comes back at regular
times is there when it does, if only spare copies and what nobody uses make way for it.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator, Sequence

from config.registry import Registry
from scheduler.actions import Activate, Decision, Park, Stage
from scheduler.learned.interference import harm_of
from scheduler.learned.kv_pressure import (
    ROUNDING,
    Company,
    company_on,
    kv_needed,
    kv_use,
    kvpr_parts,
    kvpr_with,
    mapped_on,
    misses,
    misses_added,
)
from scheduler.memory import budget
from scheduler.policies.cheapest_worker import Place
from scheduler.policies.groups import activation, parked_groups
from scheduler.policies.moves import Moves
from scheduler.policies.on_demand import OnDemand
from scheduler.policies.places import free_group, free_on
from scheduler.policies.staging import has_room, is_staged
from scheduler.state.entities import Device, Model, Request, Worker
from scheduler.state.phases import FREE, Phase
from scheduler.state.state import State

PERIOD = 0.5
"""Seconds between two checks of what idle memory is good for."""
HORIZON = 40.0
"""Seconds for which demand is taken to stay as it is."""
SHORT = 0.8
"""Share of a device's KV cache from which on its memory is short."""
ROOMY = 0.4
"""And up to which some of it may go to a model that nobody waits for."""
FIRST_LEAVES, COPY_LEAVES = 0.1, 0.15
"""Shares of a device's memory that are left for KV cache when a model is activated ahead of its demand."""
CHOICE = 8
"""Candidates considered per device; the one that shares the fewest other devices with this device's models wins."""
BEGIN = 0.5
"""Requests that are expected to miss because a worker that was idle is busy: whoever comes next finds it so."""
LEAST_GAIN = 12.0
"""Requests that an exchange must save within the horizon; and times what it loses."""
AGAIN = 2.0
"""Multiplier of LEAST_GAIN where every worker beyond the reserve is parked: a sign of recent churn."""
COOLDOWN = 5.0
"""Seconds between two exchanges on a device, or for a model: what one has brought is to be seen first."""
RESIDENCE = 20.0
"""Seconds for which a model stays where it was activated, unless somebody waits for a worker."""
NOBODY_RESTS = 10.0
"""Requests that it is taken to cost where a busy model would have to leave."""
MISSED_SOON = 0.5
"""Requests that are lost with those who make way, from which on they get the place that the other one leaves."""
SPARE = 0.1
"""How valuable a request a second is that would find another copy, or none for long, in requests lost."""

COMING = frozenset({Phase.PREPARING, Phase.ACTIVATING})


class Prism(OnDemand):
    elastic = True
    by_admission = True

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._moves = Moves()
        self._looked_at = float("-inf")
        self._filling = True
        """Something was activated at the last check: there may be more to do as soon as it is there."""
        self._staged = 0
        """Models that were in host memory then."""
        self._nothing_fitted: dict[str, tuple[int, ...]] = {}
        """How each device was filled when nothing more would go in."""
        self._exchanged_at: dict[str, float] = {}
        """When there was an exchange last, by device."""

    def route(self, state: State, workers: Sequence[Worker], request: Request, now: float) -> Worker:
        """Where the fewest requests are expected to miss their TPOT for it, itself among them."""

        def harm(worker: Worker) -> tuple[float, int]:
            begins = 0.0 if worker.running else BEGIN
            return (harm_of(state, worker, request, now) + begins, worker.number)

        return min(workers, key=harm)

    def place(self, state: State, worker: Worker, model: Model, now: float) -> tuple[float, ...]:
        device = state.device_of(worker)

        def priced() -> float:
            missed = misses_added(state, self._company(state, device, now), model, now) * HORIZON
            victims = self._victims_for(state, worker, model, now)
            lost = NOBODY_RESTS if victims is None else sum(_loss(state, victim, now) for victim in victims)
            return missed + lost

        price = self._cache.of(state, ("price", model.name, worker.number), priced)
        pressure = self._pressure(state, device, model, now)
        return (price + _waits(state, model, now, parked=worker.model == model.name), pressure)

    def place_at_least(self, state: State, worker: Worker, now: float) -> Place:
        """What those that are there miss more."""
        return (self._company(state, state.device_of(worker), now).pushed * HORIZON,)

    def _losses(self, state: State, device: Device, now: float) -> list[tuple[float, int]]:
        """What would be lost with each of the device's idle workers, and its number; the least loss first."""

        def losses() -> list[tuple[float, int]]:
            resting = (worker for worker in self._victims(state, [device.name]) if self.rests(state, worker, now))
            return sorted((_loss(state, worker, now), worker.number) for worker in resting)

        return self._cache.of(state, ("losses", device.name), losses)

    def comes_for(self, state: State, model: Model, now: float) -> float:
        """The requests that wait until it is there."""
        return _waits(state, model, now, parked=False)

    def narrowed(self, state: State, worker: Worker, model: Model, now: float, bound: Place, *, short: bool) -> Place:
        """Where memory is short, one of the idle ones leaves at least; all else is exact."""
        device, lost = state.device_of(worker), 0.0
        missed = misses_added(state, self._company(state, device, now), model, now) * HORIZON
        if short:
            lost = min((loss for loss, _ in self._losses(state, device, now)[:1]), default=NOBODY_RESTS)
        price = (missed + min(lost, NOBODY_RESTS)) * (1 - ROUNDING)
        return (price + self.comes_for(state, model, now), self._pressure(state, device, model, now))

    def _pressure(self, state: State, device: Device, model: Model, now: float) -> float:
        """The KV pressure ratio of the device with the model."""
        parts = self._cache.on(state, device, "pressure", lambda: kvpr_parts(state, device, now))
        return kvpr_with(state, parts, model, now)

    def _company(self, state: State, device: Device, now: float) -> Company:
        return self._cache.on(state, device, "company", lambda: company_on(state, device, now))

    def value(self, state: State, worker: Worker, now: float) -> float:
        """Requests that would miss it, by the bytes that it gives."""
        model = state.model_of(worker)
        freed = state.account(worker).weights + state.device_of(worker).kv_minimum
        worth = (_loss(state, worker, now) + SPARE * _wanted(model, now)) * (1.0 + model.priority)
        return worth / max(1, freed)

    def may_leave(self, state: State, worker: Worker) -> bool:
        return not self._moves.concerns(worker)

    def park_idle(self, state: State, now: float) -> Iterator[Decision]:
        """An idle model costs nothing until others have use for its memory."""
        yield from self.park_when_short(state, now, SHORT)

    def improve(self, state: State, now: float) -> Iterator[Decision]:
        yield from self._moves.follow(state)
        staged = sum(model.staged for model in state.models.values())
        if state.wanting or (now - self._looked_at < PERIOD and not self._filling and staged == self._staged):
            return
        self._looked_at, self._filling, self._staged = now, False, staged
        yield from self._expect(state, now)
        suffering, ranking = self._suffering(state, now), _most_wanted_first(state, now)
        for device in state.devices.values():
            if not self._takes_copies(state, device):
                continue
            if found := self._idle_memory_for(state, device, ranking, now):
                model, group = found
                yield activation(group, model, f"memory of {device.name} is idle")
                _rank_again(ranking, model, now)
            elif suffering and (decisions := list(self._exchange(state, device, suffering, now))):
                yield from decisions
                ranking = _most_wanted_first(state, now)

    def _expect(self, state: State, now: float) -> Iterator[Decision]:
        """Bring models that are due: into host memory if it has room, and where nobody loses anything by it."""
        for model in state.models.values():
            due = model.demand.recurrence.expected_in(now)
            if due is None or model.workers or model.tensor_parallel > 1 or not _may_come(model, now):
                continue
            when = f"its demand is expected in {due:.0f} s" if due > 0 else f"its demand was expected {-due:.0f} s ago"
            if not is_staged(state, model):
                if state.host.staging is None and has_room(state, model):
                    yield Stage(model.name, when)
            elif found := self._harmless(state, model, now):
                worker, victims = found
                for victim in victims:
                    yield Park(victim.number, f"idle {now - victim.last_used:.1f} s, {model.name} is due")
                yield Activate(worker.number, model.name, when)

    def _harmless(self, state: State, model: Model, now: float) -> tuple[Worker, list[Worker]] | None:
        """A free worker, and the fewest that make way for `model` there and nobody will miss."""
        found = []
        for device in state.devices.values():
            free = self._free_for(state, device, model)
            if free is None:
                continue
            victims = self._victims_for(state, free, model, now)
            if victims is not None and all(self._is_missed_by_nobody(state, victim, now) for victim in victims):
                found.append((free, victims))
        return min(found, key=lambda it: (len(it[1]), it[0].number), default=None)

    def _free_for(self, state: State, device: Device, model: Model) -> Worker | None:
        """The one that has the skeleton of `model`, or a blank one beyond the reserve."""
        free = [worker for worker in state.view(device).free if worker.reserved_for is None]
        kept = next((worker for worker in free if worker.model == model.name), None)
        if kept is not None or not self._takes_copies(state, device):
            return kept
        return next((worker for worker in free if worker.phase is Phase.BLANK), None)

    def _is_missed_by_nobody(self, state: State, worker: Worker, now: float) -> bool:
        """A spare copy, or a model that was not used for long and is not expected to be."""
        if _is_spare(state, worker):
            return True
        demand = state.model_of(worker).demand
        wanted = demand.arrivals.per_second(now) > 0.0 or demand.recurrence.expected_in(now) is not None
        return not wanted and now - worker.last_used >= self._config.idle_timeout

    def _idle_memory_for(
        self, state: State, device: Device, models: Sequence[Model], now: float
    ) -> tuple[Model, list[Worker]] | None:
        """The most wanted of the models that the device does not have and has room for, and workers for it."""
        use = kv_use(state, device)
        if use > ROOMY:
            return None
        # Most checks find the device as full as last time. What could change the answer is compared first; of KV use, a
        # tenth is precise enough, since it only decides how much is left free.
        here = {worker.model for worker in mapped_on(state, device)}
        absent = len(models) - sum(_may_come(state.models[name], now) for name in here if name)
        free = sum(worker.replica.phase in FREE for worker in state.on(device))
        filling = (device.ledger.fixed, free, absent, self._staged, int(10 * use))
        if self._nothing_fitted.get(device.name) == filling:
            return None
        coming = any(state.numbers_in(phase) for phase in COMING)
        loading = bool(state.to_preload) or state.host.staging is not None
        room = budget.room(state, device) - device.kv_minimum if device.accounted else float("inf")
        found: list[tuple[Model, list[Worker]]] = []
        for model in models:
            # The ranking is by number of workers: a candidate with more of them than the first is less needed, however
            # well it would fit in.
            if found and (len(found) == CHOICE or len(model.workers) > len(found[0][0].workers)):
                break
            if model.name in here:
                continue
            if model.workers and loading:
                return None  # The room may be for one that nobody has yet.
            if model.tensor_parallel == 1 and model.shard_bytes > room:
                continue
            group = self._free_group(state, device, model)
            if group and all(_leaves_enough(state, worker, model) for worker in group):
                found.append((model, group))
                if not model.workers:
                    break
            elif coming and not model.workers and model.tensor_parallel > 1:
                return None  # It needs more devices than are free at the moment.
        if found:
            self._filling = True
            return min(found, key=lambda it: _met_elsewhere(state, it[0], here))
        self._nothing_fitted[device.name] = filling
        return None

    def _suffering(self, state: State, now: float) -> set[str]:
        """Models on devices where enough requests are expected to miss for an exchange to be worth it."""
        bad = [d for d in state.devices.values() if misses(state, d, now) * HORIZON > LEAST_GAIN]
        return {worker.model or "" for device in bad for worker in mapped_on(state, device)}

    def _takes_copies(self, state: State, device: Device) -> bool:
        """Whether it has a worker beyond the reserve. A parked one counts: if a blank one goes, it takes its place."""
        coming = any(worker.replica.phase in COMING for worker in state.on(device))
        parked = sum(it.phase is Phase.PARKED and it.reserved_for is None for it in state.view(device).free)
        return not coming and self._upkeep.missing(state, device) < parked

    def _free_group(self, state: State, device: Device, model: Model) -> list[Worker]:
        """Where a copy of `model` could be: here, or on any devices that take copies. One on several has no second."""
        if model.tensor_parallel == 1:
            return free_group(state, [device], model)
        without: set[str] = self._cache.of(state, "without a group", set)
        if model.workers or model.name in without:
            return []
        takers = self._cache.of(state, ("takers", model.name), lambda: self._takers(state, model))
        found = free_group(state, [device, *(other for other in takers if other is not device)], model)
        if not found:
            without.add(model.name)  # The order of devices is all that differs from one to the next.
        return found

    def _takers(self, state: State, model: Model) -> list[Device]:
        """Devices that take copies and have a worker for `model`, free or in a parked group."""
        parked = {worker.device for group in parked_groups(state, model) for worker in group}
        takers = self._cache.of(
            state, "takers", lambda: [other for other in state.devices.values() if self._takes_copies(state, other)]
        )
        return [other for other in takers if other.name in parked or free_on(state, other, model)]

    def _exchange(self, state: State, device: Device, suffering: set[str], now: float) -> Iterator[Decision]:
        """Have idle models make way for one that would miss less there, if that is worth it."""
        if now - self._exchanged_at.get(device.name, -COOLDOWN) < COOLDOWN:
            return
        here = {worker.model for worker in mapped_on(state, device)}
        reliefs = self._cache.of(state, "reliefs", lambda: _reliefs(state, suffering, now))
        company = self._company(state, device, now)
        gains = [
            (relief - misses_added(state, company, model, now), model, source)
            for model, relief, source in reliefs
            if model.name not in here and self._moves.settled(model, now, COOLDOWN)
        ]
        gain, model, source = max(gains, key=lambda it: (it[0], -it[1].index), default=(0.0, None, None))
        least = LEAST_GAIN * (1.0 if self._upkeep.missing(state, device) < 0 else AGAIN)
        if model is None or source is None or gain * HORIZON <= least:
            return
        free = self._free_for(state, device, model)
        if free is None:
            return
        victims = self._victims_for(state, free, model, now, RESIDENCE)
        if victims is None:
            return
        lost = sum(_loss(state, worker, now) for worker in victims)
        if gain * HORIZON <= least * (1.0 + lost):
            return
        self._exchanged_at[device.name] = self._exchanged_at[source.device] = now
        reason = f"{model.name} would miss {gain:.2f} requests/s less on {device.name}"
        for worker in victims:
            yield Park(worker.number, f"idle {now - worker.last_used:.1f} s; {reason}")
        stays = lost < MISSED_SOON
        yield from self._moves.begin(model, source, free, f"it would miss {gain:.2f} requests/s less there", now, stays)

    def _victims_for(
        self, state: State, free: Worker, model: Model, now: float, residence: float = 0.0
    ) -> list[Worker] | None:
        """Idle workers whose memory is enough for `model` to begin on `free`, the least loss first; None if not.

        They have been there for `residence` seconds.
        """
        device = state.device_of(free)
        short = budget.shortage(state, free, model)
        victims = []
        for worker in (state.workers[number] for _, number in self._losses(state, device, now)):
            if short <= 0:
                break
            if now - worker.since < residence:
                continue
            victims.append(worker)
            short -= state.account(worker).weights + device.kv_minimum
        return victims if short <= 0 else None


def _reliefs(state: State, suffering: set[str], now: float) -> list[tuple[Model, float, Worker]]:
    """Models whose move may gain enough, if it costs nothing elsewhere; how much that is, and from where."""
    found = []
    for model in (model for model in state.models.values() if model.name in suffering and _may_come(model, now)):
        active = [worker for number in sorted(model.workers) if (worker := state.workers[number]).phase is Phase.ACTIVE]
        if not active or model.tensor_parallel > 1:
            continue
        source = max(active, key=lambda worker: worker.busy.at(now))
        relief = _relief(state, source, now)
        if relief * HORIZON > LEAST_GAIN * (1 - ROUNDING):
            found.append((model, relief, source))
    return found


def _relief(state: State, source: Worker, now: float) -> float:
    """Requests a second that would be missed less without this worker."""
    here = state.device_of(source)
    return misses(state, here, now) - misses(state, here, now, minus=source)


def _loss(state: State, worker: Worker, now: float) -> float:
    """Requests that will find their model gone, and wait for it, if a worker is taken from it."""
    model = state.model_of(worker)
    if _is_spare(state, worker):
        return 0.0
    rate = _wanted(model, now)
    missed = 1.0 if model.demand.recurrence.expected_in(now) is not None else min(1.0, rate * HORIZON)
    return missed + rate * state.estimates.activation(model.shard_bytes, parked=False)


def _met_elsewhere(state: State, model: Model, others: set[str | None]) -> int:
    """How often the model is beside these on other devices already: a request finds both busy wherever it goes."""
    devices = (state.devices[state.workers[number].device] for number in model.workers)
    return sum(worker.model in others for device in devices for worker in mapped_on(state, device))


def _is_spare(state: State, worker: Worker) -> bool:
    """Whether another worker serves the same model."""
    others = state.model_of(worker).workers - {worker.number}
    return any(state.workers[number].phase is Phase.ACTIVE for number in others)


def _most_wanted_first(state: State, now: float) -> list[Model]:
    return sorted((model for model in state.models.values() if _may_come(model, now)), key=_most_wanted(now))


def _rank_again(ranking: list[Model], model: Model, now: float) -> None:
    """It has a worker more than when the others were ranked."""
    del ranking[next(place for place, other in enumerate(ranking) if other is model)]
    insort(ranking, model, key=_most_wanted(now))


def _most_wanted(now: float) -> Callable[[Model], tuple[int, int, float, int]]:
    """Who has fewest workers comes first; of them, who needs most devices, as long as these are free."""

    def key(model: Model) -> tuple[int, int, float, int]:
        return (len(model.workers), -model.tensor_parallel, -_wanted(model, now), model.index)

    return key


def _may_come(model: Model, now: float) -> bool:
    return now >= model.retry_at and not model.dismissed


def _wanted(model: Model, now: float) -> float:
    """Requests a second that are expected of a model."""
    return model.demand.arrivals.per_second(now) + 1.0 / (60.0 + now - model.last_used)


def _leaves_enough(state: State, worker: Worker, model: Model) -> bool:
    """Whether the worker's device would keep enough of its memory for KV cache."""
    ledger = state.device_of(worker).ledger
    if ledger.capacity is None:
        return True
    left = ledger.capacity - ledger.fixed - budget.need(state, worker, model)
    needed = sum(kv_needed(state, other) for other in mapped_on(state, state.device_of(worker)))
    return left >= max((COPY_LEAVES if model.workers else FIRST_LEAVES) * ledger.capacity, needed / ROOMY)


def _waits(state: State, model: Model, now: float, *, parked: bool) -> float:
    """Requests that have to wait until the model is there, with its skeleton or without."""
    return state.estimates.activation(model.shard_bytes, parked=parked) * max(
        1.0, model.demand.arrivals.per_second(now)
    )
