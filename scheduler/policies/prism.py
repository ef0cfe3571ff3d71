"""The policy `prism`: idle memory is used for second copies of models, and each request goes where it disturbs least.

A model that is active on several devices needs no migration when demand shifts: the next request is simply sent to
where fewer others are busy, since co-location costs compute, not only memory. So, while memory is idle, models are
activated ahead of their demand, the most wanted first, those without any worker before all others. Copies are given up
as soon as somebody has a better use for their memory: an idle one is evicted by value, which weighs how soon it would
be missed, how long it takes to come back, whether another device has it too, and how many bytes it frees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from config.registry import Registry
from scheduler import memory
from scheduler.actions import Activate, Decision, Park
from scheduler.harm import harm_of
from scheduler.policies.groups import activation
from scheduler.policies.on_demand import OnDemand
from scheduler.policies.places import free_group
from scheduler.pressure import kvpr, mapped_on, misses
from scheduler.state import FREE, MAPPED, Device, Model, Phase, Request, State, Worker

PERIOD = 0.5
"""Seconds between two looks at what idle memory is good for."""
HORIZON = 40.0
"""Seconds for which demand is taken to stay as it is."""
SHORT = 0.8
"""Share of a device's KV cache from which on its memory is short."""
FIRST_LEAVES, COPY_LEAVES = 0.1, 0.25
"""Shares of a device's memory that are left for KV cache when a model is activated ahead of its demand."""
BEGIN = 0.5
"""Requests that are expected to miss because a worker that was idle is busy: whoever comes next finds it so."""
LEAST_GAIN = 12.0
"""Requests that an exchange must save within the horizon; and times what it loses."""
COOLDOWN = 5.0
"""Seconds between two exchanges on a device."""
MOST_PRICES = 1000
"""Of places, kept for as long as they are asked for again and again."""
RESIDENCE = 20.0
"""Seconds for which a model stays where it was activated, unless somebody waits for a worker."""
NOBODY_RESTS = 10.0
"""Requests that it is taken to cost where a busy model would have to leave."""
SPARE = 0.1
"""How valuable a request a second is that would find another copy, or none for long, in requests lost."""

COMING = frozenset({Phase.PREPARING, Phase.ACTIVATING})


class Prism(OnDemand):
    elastic = True
    by_admission = True

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry)
        self._looked_at = float("-inf")
        self._filling = True
        """Something was activated at the last look: there may be more to do as soon as it is there."""
        self._staged = 0
        """Models that were in host memory then."""
        self._priced: dict[tuple[float, str, str, int], tuple[float, float]] = {}
        """What a model costs on a device at a moment, and the device's pressure then."""
        self._nothing_fitted: dict[str, tuple[int, int, int, int]] = {}
        """How each device was filled when nothing more would go in."""
        self._exchanged_at: dict[str, float] = {}

    def route(self, state: State, workers: Sequence[Worker], request: Request, now: float) -> Worker:
        """Where the fewest requests are expected to miss their TPOT for it, itself among them."""

        def harm(worker: Worker) -> tuple[float, int]:
            begins = 0.0 if worker.running else BEGIN
            return (harm_of(state, worker, request, now) + begins, worker.number)

        return min(workers, key=harm)

    def place(self, state: State, worker: Worker, model: Model, now: float) -> tuple[float, ...]:
        device = state.devices[worker.device]
        key = (now, model.name, device.name, sum(w.phase in MAPPED for w in state.on(device)))
        if key not in self._priced:
            if len(self._priced) > MOST_PRICES:
                self._priced.clear()
            missed = _added(state, device, model, now) * HORIZON
            victims = self._victims_for(state, worker, model, now)
            lost = NOBODY_RESTS if victims is None else sum(_loss(state, victim, now) for victim in victims)
            self._priced[key] = (missed + lost, kvpr(state, device, now, model))
        price, pressure = self._priced[key]
        waiting = _seconds(state, worker, model) * max(1.0, model.demand.arrivals.per_second(now))
        return (price + waiting, pressure)

    def value(self, state: State, worker: Worker, now: float) -> float:
        """Requests that would miss it, by the bytes that it gives."""
        model = state.models[worker.model or ""]
        freed = state.account(worker).weights + state.devices[worker.device].kv_minimum
        worth = (_loss(state, worker, now) + SPARE * _wanted(model, now)) * (1.0 + model.priority)
        return worth / max(1, freed)

    def park_idle(self, state: State, now: float) -> Iterator[Decision]:
        """An idle model costs nothing until others have use for its memory."""
        yield from self.park_when_short(state, now, SHORT)

    def improve(self, state: State, now: float) -> Iterator[Decision]:
        staged = sum(model.staged for model in state.models.values())
        if state.wanting or (now - self._looked_at < PERIOD and not self._filling and staged == self._staged):
            return
        self._looked_at, self._filling, self._staged = now, False, staged
        suffering = self._suffering(state, now)
        for device in state.devices.values():
            if not self._takes_copies(state, device):
                continue
            here = {worker.model for worker in state.on(device) if worker.phase in MAPPED}
            absent = [model for model in state.models.values() if model.name not in here and _may_come(model, now)]
            decisions = list(self._use_idle_memory(state, device, absent, now))
            yield from decisions
            if not decisions and suffering:
                yield from self._exchange(state, device, [m for m in absent if m.name in suffering], now)

    def _use_idle_memory(self, state: State, device: Device, absent: Sequence[Model], now: float) -> Iterator[Decision]:
        """Activate what is most wanted of the models that the device does not have, if there is room for it."""
        fixed = device.ledger.fixed
        free = sum(worker.phase in FREE for worker in state.on(device))
        look = (fixed, free, len(absent), self._staged)
        if self._nothing_fitted.get(device.name) == look:
            return
        coming = any(worker.phase in COMING for worker in state.workers)
        loading = bool(state.to_preload) or state.host.staging is not None
        for model in sorted(absent, key=_most_wanted(now)):
            if model.workers and loading:
                return  # The room may be for one that nobody has yet.
            group = free_group(state, self._devices_from(state, device, model), model)
            if group and all(_leaves_enough(state, worker, model) for worker in group):
                self._filling = True
                yield activation(group, model, f"memory of {device.name} is idle")
                return
            if coming and not model.workers and model.tensor_parallel > 1:
                return  # It needs more devices than are free at the moment.
        self._nothing_fitted[device.name] = look

    def _suffering(self, state: State, now: float) -> set[str]:
        """Models on devices where enough requests are expected to miss for an exchange to be worth it."""
        bad = [d for d in state.devices.values() if misses(state, d, now) * HORIZON > LEAST_GAIN]
        return {worker.model or "" for device in bad for worker in mapped_on(state, device)}

    def _takes_copies(self, state: State, device: Device) -> bool:
        coming = any(worker.phase in COMING for worker in state.on(device))
        return not coming and self._upkeep.missing(state, device) < 0

    def _devices_from(self, state: State, device: Device, model: Model) -> list[Device]:
        """Where a copy of `model` could be: here, or on any devices that take copies. One on several has no second."""
        if model.tensor_parallel == 1:
            return [device]
        if model.workers:
            return []
        others = (other for other in state.devices.values() if other is not device)
        return [device, *(other for other in others if self._takes_copies(state, other))]

    def _exchange(self, state: State, device: Device, absent: Sequence[Model], now: float) -> Iterator[Decision]:
        """Have idle models make way for one that would miss less there, if that is worth it."""
        if now - self._exchanged_at.get(device.name, -COOLDOWN) < COOLDOWN:
            return
        movable = (model for model in absent if model.workers and model.tensor_parallel == 1)
        gains = [(_gain(state, model, device, now), model) for model in movable]
        gain, model = max(gains, key=lambda pair: (pair[0], -pair[1].index), default=(0.0, None))
        if model is None or gain * HORIZON <= LEAST_GAIN:
            return
        free = next((w for w in state.on(device) if w.phase is Phase.BLANK and w.reserved_for is None), None)
        victims = None if free is None else self._victims_for(state, free, model, now, RESIDENCE)
        if victims is None or gain * HORIZON <= LEAST_GAIN * (
            1.0 + sum(_loss(state, worker, now) for worker in victims)
        ):
            return
        self._exchanged_at[device.name] = now
        for worker in victims:
            reason = f"{model.name} would miss {gain:.2f} requests/s less on {device.name}"
            yield Park(worker.number, f"idle {now - worker.last_used:.1f} s; {reason}")
        assert free is not None
        yield Activate(free.number, model.name, f"it would miss {gain:.2f} requests/s less there")

    def _victims_for(
        self, state: State, free: Worker, model: Model, now: float, residence: float = 0.0
    ) -> list[Worker] | None:
        """Idle workers whose memory is enough for `model` to begin on `free`, the least loss first; None if not.

        They have been there for `residence` seconds.
        """
        device = state.devices[free.device]
        short = memory.shortage(state, free, model)
        possible = self._victims(state, [device.name], for_memory=False)
        resting = [w for w in possible if self.rests(state, w, now) and now - w.since >= residence]
        victims = []
        for worker in sorted(resting, key=lambda worker: (_loss(state, worker, now), worker.number)):
            if short <= 0:
                break
            victims.append(worker)
            short -= state.account(worker).weights + device.kv_minimum
        return victims if short <= 0 else None


def _gain(state: State, model: Model, device: Device, now: float) -> float:
    """Requests a second that would be missed less if the model's busiest worker were on the device instead."""
    active = [state.workers[number] for number in sorted(model.workers) if state.workers[number].phase is Phase.ACTIVE]
    if not active:
        return 0.0
    source = max(active, key=lambda worker: worker.busy.at(now))
    here = state.devices[source.device]
    relief = misses(state, here, now) - misses(state, here, now, minus=source)
    return relief - _added(state, device, model, now)


def _loss(state: State, worker: Worker, now: float) -> float:
    """Requests that will find their model gone, and wait for it, if a worker is taken from it."""
    model = state.models[worker.model or ""]
    if any(state.workers[number].phase is Phase.ACTIVE for number in model.workers if number != worker.number):
        return 0.0
    rate = model.demand.arrivals.per_second(now)
    return min(1.0, rate * HORIZON) + rate * state.estimates.activation(model.shard_bytes, parked=False)


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
    ledger = state.devices[worker.device].ledger
    if ledger.capacity is None:
        return True
    fixed = ledger.fixed + memory.need(state, worker, model)
    return ledger.capacity - fixed >= (COPY_LEAVES if model.workers else FIRST_LEAVES) * ledger.capacity


def _added(state: State, device: Device, model: Model, now: float) -> float:
    """Requests a second that would be missed more with the model on the device."""
    return misses(state, device, now, plus=model) - misses(state, device, now)


def _seconds(state: State, worker: Worker, model: Model) -> float:
    return state.estimates.activation(model.shard_bytes, parked=worker.model == model.name)
