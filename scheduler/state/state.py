"""The scheduler's books. What they hold is in `entities`; `State` finds it, and keeps the indexes over it.

Policies read it. It changes through its own methods where an index has to follow, and field by field where none has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler.learned.estimates import Estimates
from scheduler.state.device_view import DeviceView, kept_beside, view_of
from scheduler.state.entities import Device, HostMemory, Isolation, Known, Model, Replica, Request, Worker
from scheduler.state.ledger import Account
from scheduler.state.phase_index import PhaseIndex
from scheduler.state.phases import SERVING, TAKEN, Phase, require_legal


@dataclass(slots=True)
class State:
    models: dict[str, Model]
    workers: list[Worker]
    host: HostMemory
    devices: dict[str, Device]
    estimates: Estimates
    requests: dict[int, Request] = field(default_factory=dict)
    isolations: dict[int, Isolation] = field(default_factory=dict)
    """By worker."""
    apart: list[int] = field(default_factory=list)
    """Suspects that wait for a worker to be isolated for them."""
    known: dict[str, Known] = field(default_factory=dict)
    """By digest, the oldest first."""
    wanting: dict[str, None] = field(default_factory=dict)
    """Models that want a worker and have none, in the order in which they began to."""
    operator_wants: set[str] = field(default_factory=set)
    """Models that an operator waits for."""
    to_preload: dict[str, None] = field(default_factory=dict)
    """Models that belong into host memory and are not there yet."""
    _phases: PhaseIndex = field(init=False)
    _views: dict[str, DeviceView] = field(init=False, default_factory=dict)
    """By device; none where a worker has changed since."""
    _on: dict[str, list[Worker]] = field(init=False)
    """By device: a worker stays on its device for ever."""
    _pinned_workers: int | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._phases = PhaseIndex(self.workers)
        self._on = {name: [worker for worker in self.workers if worker.device == name] for name in self.devices}

    # where things are

    def on(self, device: Device) -> list[Worker]:
        return self._on[device.name]

    def view(self, device: Device) -> DeviceView:
        """The device as it is now. The same object as before means that nothing has changed there."""
        view = self._views.get(device.name)
        if view is not None and view.ledger_changes == device.ledger.changes:
            return view
        view = self._views[device.name] = self.fresh_view(device)
        return view

    def fresh_view(self, device: Device) -> DeviceView:
        return view_of(device, self._on[device.name], self.keeps_pinned)

    def device_of(self, worker: Worker) -> Device:
        return self.devices[worker.device]

    def account(self, worker: Worker) -> Account:
        return self.devices[worker.device].ledger[worker.number]

    def model_of(self, worker: Worker) -> Model:
        """The model of a worker that has one.

        Raises:
            KeyError: it has none.
        """
        return self.models[worker.replica.model or ""]

    def in_phase(self, *phases: Phase) -> list[Worker]:
        """Workers in one of the phases, by number."""
        return self._phases.within(phases)

    def numbers_in(self, phase: Phase) -> set[int]:
        return self._phases.numbers(phase)

    @property
    def phase_changes(self) -> int:
        """How often any worker has changed its phase: what was found out holds until then."""
        return self._phases.changes

    # what workers do

    def gather(self, workers: Sequence[Worker]) -> None:
        """From here on these act as one, and the first of them leads; they are about to enter another phase."""
        replica = workers[0].replica
        replica.workers = tuple(workers)
        for worker in workers:
            worker.replica = replica

    def disband(self, replica: Replica) -> None:
        """From here on each of its workers, which run nothing, is one by itself, and keeps on doing what it does."""
        if len(replica.workers) == 1:
            return
        leader, *others = replica.workers
        replica.workers = (leader,)
        self._views.pop(leader.device, None)
        for worker in others:
            worker.replica = Replica((worker,), replica.phase, replica.since, replica.model, replica.last_used)
            self._views.pop(worker.device, None)

    def enter(self, replica: Replica, phase: Phase, now: float) -> None:
        """The one way into a phase: the indexes and the model's set of workers always agree with it.

        Raises:
            IllegalTransition: that phase cannot follow the one that the replica is in.
        """
        require_legal(replica.phase, phase, replica.lead.number)
        for worker in replica.workers:
            self._phases.enter(worker, phase)
            self._views.pop(worker.device, None)
        replica.phase, replica.since = phase, now
        replica.copying = phase is Phase.ACTIVATING
        replica.rehearsing &= phase in SERVING
        if replica.model is not None:
            self._count_for(self.models[replica.model], replica, now)

    def _count_for(self, model: Model, replica: Replica, now: float) -> None:
        if model.pinned:  # It may keep another one of its workers now.
            for number in model.workers:
                self._views.pop(self.workers[number].device, None)
        if replica.phase in TAKEN:
            model.workers.add(replica.lead.number)
        else:
            model.workers.discard(replica.lead.number)
        self.update_wanting(model, now)

    def note_blank(self, worker: Worker, held: int) -> None:
        """So many bytes are held by a worker without a model."""
        worker.held_blank = held
        self._views.pop(worker.device, None)

    def kv_limit(self, replica: Replica) -> int:
        """Bytes of KV cache that each of its workers may have: what the smallest limit allows."""
        return min(self.account(worker).limit for worker in replica.workers)

    def isolated_models(self) -> set[str]:
        """Those that isolated workers serve, or are about to."""
        numbers = (number for found in self.isolations.values() for number in (*found.waiting, *found.running))
        return {self.requests[number].model for number in numbers}

    # what models want

    def update_wanting(self, model: Model, now: float) -> None:
        """To be called when a model's queue changes, or what else makes it want a worker."""
        wants = not model.workers and (bool(model.queue) or model.pinned or model.name in self.operator_wants)
        if wants and model.name not in self.wanting:
            self.wanting[model.name] = None
            model.wanted_since = now
        elif not wants:
            self.wanting.pop(model.name, None)

    @property
    def pinned_workers(self) -> int:
        """How many workers pinned models need. The policy says which models these are, before this is asked first."""
        if self._pinned_workers is None:
            self._pinned_workers = sum(model.tensor_parallel for model in self.models.values() if model.pinned)
        return self._pinned_workers

    def keeps_pinned(self, worker: Worker) -> bool:
        """Whether a pinned model would have no active worker without this one."""
        replica = worker.replica
        if replica.model is None or not (model := self.models[replica.model]).pinned:
            return False
        lead = replica.lead.number
        others = (self.workers[number] for number in model.workers if number != lead)
        return lead in model.workers and not any(other.phase is Phase.ACTIVE for other in others)

    def kept_beside(self, device: Device, workers: Sequence[Worker]) -> int:
        """Bytes that these workers of the device keep whatever is evicted; if they are all that there are, one of them
        is taken to make way.
        """
        return kept_beside(device, workers, self.keeps_pinned, one_leaves=len(workers) == len(self.on(device)))

    # host memory

    def staging_begins(self, model: Model, now: float) -> None:
        self.host.staging, self.host.staging_since = model.name, now
        self._sum_up_host()

    def staging_ends(self) -> None:
        """With the weights there, in which case `is_staged` follows, or without."""
        self.host.staging = None
        self._sum_up_host()

    def is_staged(self, model: Model, nbytes: int) -> None:
        """The weights are in host memory, and have so many bytes."""
        self.to_preload.pop(model.name, None)
        model.staged, model.weight_bytes = True, nbytes
        self._sum_up_host()

    def unstage(self, model: Model) -> None:
        model.staged = False
        if model.preload or model.pinned:
            self.to_preload[model.name] = None
        self._sum_up_host()

    def staged_bytes(self, *, kept: bool = False) -> int:
        """Host memory in use or promised to the load under way; or what of it is never dropped."""
        staged = (model for model in self.models.values() if model.staged or model.name == self.host.staging)
        return sum(model.weight_bytes for model in staged if model.kept or not kept)

    def _sum_up_host(self) -> None:
        self.host.used, self.host.kept = self.staged_bytes(), self.staged_bytes(kept=True)
