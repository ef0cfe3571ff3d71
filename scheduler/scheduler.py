"""The scheduler: events in, actions out. No I/O and no clock; the same object serves the gateway and a simulator.

It keeps the books (who waits, who runs where, which worker is in which phase) and dispatches in deadline order. Which
model gets which worker is the policy's to say.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from config.registry import Registry
from scheduler.actions import (
    Abort,
    Activate,
    AnyAction,
    Blank,
    Decision,
    Dispatch,
    Drain,
    Park,
    Recycle,
    RefusalKind,
    Refuse,
    Resume,
    Stage,
    Unstage,
)
from scheduler.dispatch.admission import Admission
from scheduler.dispatch.by_deadline import ByDeadline
from scheduler.events import (
    Aborted,
    Activated,
    ActivationFailed,
    AnyEvent,
    Arrived,
    Copied,
    Counted,
    DeviceFault,
    Finished,
    FirstToken,
    LimitApplied,
    OperatorActivate,
    OperatorEvict,
    OperatorGone,
    Parked,
    Rehearsing,
    Staged,
    StageFailed,
    Stats,
    Tick,
    WorkerBlank,
    WorkerDead,
)
from scheduler.isolation import Isolations
from scheduler.learned.averages import smoothed
from scheduler.learned.observer import Observer
from scheduler.learned.profile import Profile
from scheduler.memory.activation_order import next_to_begin, overdue
from scheduler.memory.budget import claims
from scheduler.memory.feasibility import obstacle, obstacle_from
from scheduler.memory.kv_limits import KvLimits
from scheduler.operator import Commands
from scheduler.policies import policy_of
from scheduler.policies.policy import Policy
from scheduler.state.build_state import build_state
from scheduler.state.device_view import DeviceView
from scheduler.state.entities import Charge, Device, Model, Pending, Request, Worker
from scheduler.state.invariants import check
from scheduler.state.phases import SERVING, Phase

MAX_DEATHS = 2
"""Workers that may die under a request before it is refused: it may be what kills them."""
HEAD_START = 1e-6
"""Seconds that one model counts as having waited longer than the next, of those that lose their workers together."""
TRIES = 2
"""Activations of a model that may fail in a row, each on another worker, before its requests are refused."""
BACKOFF_MAX = 60.0
"""Seconds."""
CAN_REHEARSE = SERVING | {Phase.ACTIVATING}
SMOOTHING = 0.3
"""Weight of the newest value in a moving average."""


class Scheduler:
    """`weight_bytes` has each model's size, from its files; empty when the engine needs no weights. With `staging` they
    must be in host memory before an activation; those of `staged`, in bytes, are there. `capacities` has the bytes of
    each device whose memory is accounted, `kv_bytes` those of each model's KV cache per token. Speeds are the profile's
    until they are learned.

    With `validate`, every invariant is checked after every event, and InvariantBroken raised.
    """

    def __init__(
        self,
        registry: Registry,
        weight_bytes: Mapping[str, int],
        policy: Policy | None = None,
        *,
        capacities: Mapping[str, int] | None = None,
        kv_bytes: Mapping[str, int] | None = None,
        profile: Profile | None = None,
        staging: bool = True,
        staged: Mapping[str, int] | None = None,
        validate: bool = False,
    ) -> None:
        self._config = registry.scheduler
        self._pool = registry.pool
        self._queue_limit = registry.gateway.limits.queue_per_model
        self._validate = validate
        self._policy = policy or policy_of(registry)
        self.state = build_state(
            registry, weight_bytes, kv_bytes or {}, capacities or {}, profile or Profile(), staging=staging
        )
        self._observer = Observer(self.state)
        self._policy.prepare(self.state)
        for name, nbytes in (staged or {}).items():
            self.state.is_staged(self.state.models[name], nbytes)
        self._limits = KvLimits(self.state, registry.pool, elastic=self._policy.elastic)
        self._commands = Commands(self.state)
        self._isolations = Isolations(self.state, registry.pool.max_running, self._enter, self._vacate)
        self._dispatcher = self._new_dispatcher(registry)
        self._begun = False
        self._now = 0.0
        self._seen_to: dict[str, DeviceView] = {}
        """Devices as they were when they were last seen to. Between two ticks, only what has changed since is."""
        self._actions: list[AnyAction] = []
        self._handlers: dict[type[Any], Callable[[Any], None]] = {
            Arrived: self._arrived,
            Counted: self._counted,
            FirstToken: self._first_token,
            Finished: self._finished,
            Aborted: self._aborted,
            WorkerBlank: self._worker_blank,
            WorkerDead: self._worker_dead,
            DeviceFault: self._device_fault,
            Copied: self._copied,
            Rehearsing: self._rehearsing,
            Activated: self._activated,
            ActivationFailed: self._activation_failed,
            Parked: self._parked,
            LimitApplied: self._limit_applied,
            Staged: self._staged,
            StageFailed: self._stage_failed,
            Stats: self._stats,
            OperatorActivate: self._operator_activate,
            OperatorEvict: self._operator_evict,
            OperatorGone: self._operator_gone,
            Tick: self._tick,
        }
        for model in self.state.models.values():
            self.state.update_wanting(model, self._now)

    def handle(self, event: AnyEvent, now: float) -> list[AnyAction]:
        """Take one event at `now` (monotonic seconds, never less than before); returns what to do, in order."""
        if not self._begun:
            self._begin(now)
        self._now = now
        self._actions = []
        self._handlers[type(event)](event)
        if self._validate:
            check(self.state)
        return self._actions

    def _new_dispatcher(self, registry: Registry) -> ByDeadline:
        running = registry.pool.max_running
        if self._policy.by_admission:
            return Admission(self.state, self._policy, running, registry.scheduler.ahead)
        return ByDeadline(self.state, self._policy, running)

    def _begin(self, now: float) -> None:
        """The clock may stand anywhere at the first event: all workers have been starting since then."""
        self._begun = True
        for worker in self.state.workers:
            worker.since = now

    # requests

    def _arrived(self, event: Arrived) -> None:
        model = self.state.models[event.model]
        request = Request(event.request, event.model, self._now, event.deadline, event.prompt_tokens, body=event.body)
        self.state.requests[request.id] = request
        model.last_used = self._now
        model.dismissed = False
        self._observer.arrived(model, self._now)
        if self._isolations.knows(request, self._now):
            self._actions += self._isolations.arrived(request, self._now)
            return
        refusal = self._refusal(model, request)
        if refusal is not None:
            self._refuse(request, *refusal)
            return
        self._wait(model, request)
        self._serve(model)

    def _wait(self, model: Model, request: Request) -> None:
        model.queue.push(request.id, request.deadline)
        self._dispatcher.waits(request)

    def _take(self, request: Request) -> None:
        """Out of its queue, whatever for."""
        self.state.models[request.model].queue.remove(request.id)
        self._dispatcher.leaves(request)

    def _refusal(self, model: Model, request: Request) -> tuple[RefusalKind, str, float] | None:
        """Why a request cannot even wait: kind, reason, seconds until it is worth trying again."""
        waiting = len(model.queue)
        if waiting >= self._queue_limit:
            return "queue_full", f"{waiting} requests wait for {model.name} already", self._queue_seconds(model)
        if not model.workers and (problem := obstacle(self.state, model)):
            return "unavailable", problem, BACKOFF_MAX
        if not model.workers and model.failures >= TRIES and self._now < model.retry_at:
            return "unavailable", f"{model.name} cannot be activated: {model.failure}", model.retry_at - self._now
        if self._config.late == "refuse":
            start = self._now + (0.0 if model.workers else model.activation_seconds)
            if start > request.deadline:
                return "late", f"{model.name} cannot answer within the deadline", max(1.0, start - request.deadline)
        return None

    def _queue_seconds(self, model: Model) -> float:
        """Time in which the present queue drains."""
        slots = max(1, len(model.workers)) * self._pool.max_running
        return max(1.0, len(model.queue) * model.service_seconds / slots)

    def _counted(self, event: Counted) -> None:
        request = self.state.requests.get(event.request)
        if request is None:
            return
        request.prompt_tokens = event.prompt_tokens
        if request.worker is not None:
            need = self.state.models[request.model].kv_need(request)
            for member in self.state.group(self.state.workers[request.worker]):
                member.kv_promised += need - request.kv_bytes
            request.kv_bytes = need

    def _first_token(self, event: FirstToken) -> None:
        request = self.state.requests.get(event.request)
        if request is not None and request.isolated:
            request.first_token_at = self._now
        elif request is not None and request.first_token_at is None:
            request.first_token_at = self._now
            self._observer.first_token(request, self._now)
            self._dispatcher.answers(request, self._now)
            self._dispatch(self.state.models[request.model])

    def _finished(self, event: Finished) -> None:
        request = self.state.requests.get(event.request)
        if request is not None and request.isolated:
            self._actions += self._isolations.finished(request, self._now)
            return
        if request is None or request.worker is None:
            return
        model = self.state.models[request.model]
        model.service_seconds = smoothed(model.service_seconds, self._now - request.dispatched, SMOOTHING)
        self._observer.finished(request, self.state.workers[request.worker], event.output_tokens, self._now)
        self._release(request)

    def _aborted(self, event: Aborted) -> None:
        request = self.state.requests.get(event.request)
        if request is not None:
            self._release(request)

    def _release(self, request: Request) -> None:
        """The request is over: forget it, and use the place it leaves."""
        if request.isolated:
            self._actions += self._isolations.over(request, self._now)
            return
        del self.state.requests[request.id]
        model = self.state.models[request.model]
        if request.worker is None:
            self._take(request)
            self.state.update_wanting(model, self._now)
            return
        worker = self.state.workers[request.worker]
        self._leave(worker, request)
        self._use(worker)
        model.last_used = self._now
        self._dispatcher.frees(worker)
        if worker.phase is Phase.DRAINING and not worker.running:
            self._decide(Park(worker.number, "drained"))
        self._serve(model)

    def _leave(self, worker: Worker, request: Request) -> None:
        """It runs there no more."""
        for member in self.state.group(worker):
            member.running.discard(request.id)
            member.kv_promised -= request.kv_bytes
        request.kv_bytes = 0
        if request.first_token_at is None:
            self._dispatcher.answers(request, self._now)
        self._observer.load_changed(worker, self._now)

    def _refuse(self, request: Request, kind: RefusalKind, reason: str, retry_after: float) -> None:
        del self.state.requests[request.id]
        self._actions.append(Refuse(request.id, kind, reason, retry_after))

    def _refuse_waiting(self, model: Model, reason: str, retry_after: float) -> None:
        while model.queue:
            request = self.state.requests[model.queue.first()]
            self._take(request)
            self._refuse(request, "unavailable", reason, retry_after)

    # dispatch

    def _serve(self, model: Model) -> None:
        """After a change of a model's queue or workers: dispatch what can run, and plan if anyone lacks a worker."""
        self._dispatch(model)
        self.state.update_wanting(model, self._now)
        if self.state.wanting:
            self._plan()

    def _dispatch(self, model: Model) -> None:
        """Send what can run, after a change that concerns `model`."""
        while found := self._dispatcher.next(model, self._now):
            request, worker = found
            self._take(request)
            if self._config.late == "refuse" and self._now > request.deadline:
                self._refuse(request, "late", "its deadline passed while it waited", 1.0)
            else:
                self._send(request, worker)

    def _send(self, request: Request, worker: Worker) -> None:
        request.worker = worker.number
        request.dispatched = self._now
        self._use(worker)
        request.kv_bytes = self.state.models[request.model].kv_need(request)
        for member in self.state.group(worker):
            member.running.add(request.id)
            member.kv_promised += request.kv_bytes
        self._dispatcher.starts(request, worker, self._now)
        self._observer.dispatched(request, worker, self._now)
        self._actions.append(Dispatch(request.id, worker.number))

    def _use(self, worker: Worker) -> None:
        for member in self.state.group(worker):
            member.last_used = self._now

    def _refuse_late(self) -> None:
        for model in self.state.models.values():
            while (deadline := model.queue.first_deadline()) is not None and deadline < self._now:
                request = self.state.requests[model.queue.first()]
                self._take(request)
                self._refuse(request, "late", "its deadline passed while it waited", 1.0)
            self.state.update_wanting(model, self._now)

    # the policy's decisions

    def _plan(self) -> None:
        if self.state.apart:
            self._actions += self._isolations.find_places(self._now)
        for decision in self._policy.plan(self.state, self._now):
            self._decide(decision)
        for device in self.state.devices.values():
            view = self.state.view(device)
            if view.preparing or view is not self._seen_to.get(device.name):
                self._advance(device)
                self._seen_to[device.name] = self.state.view(device)

    def _decide(self, decision: Decision) -> None:
        """Apply a decision to the state, and hand it out; an activation, once its device has memory and link for it."""
        if isinstance(decision, Activate):
            self._prepare(decision)
            return
        self._actions.append(decision)
        match decision:
            case Drain():
                worker = self.state.workers[decision.worker]
                self._enter(worker, Phase.DRAINING)
                if not worker.running:
                    self._decide(Park(worker.number, decision.reason))
            case Resume():
                worker = self.state.workers[decision.worker]
                model = self.state.model_of(worker)
                self._enter(worker, Phase.ACTIVE)
                self._actions += self._commands.resumed(worker, model)
                self._dispatch(model)
            case Park():
                self._enter(self.state.workers[decision.worker], Phase.PARKING)
            case Blank():
                self._enter(self.state.workers[decision.worker], Phase.BLANKING)
            case Recycle():
                self._enter(self.state.workers[decision.worker], Phase.STARTING)
                self.state.workers[decision.worker].held_first = None
            case Stage():
                self.state.staging_begins(self.state.models[decision.model], self._now)
            case Unstage():
                self.state.unstage(self.state.models[decision.model])

    # activations

    def _prepare(self, decision: Activate) -> None:
        worker = self.state.workers[decision.worker]
        worker.followers = decision.followers
        group = self.state.group(worker)
        for member in group:
            member.pending = Pending(decision, skeleton=member.model, held=self.state.account(member).held)
            member.leader = worker.number if member is not worker else None
            member.model = decision.model
        worker.reserved_for = None
        worker.evicting = False
        self._enter(worker, Phase.PREPARING)
        if worker.tearing:
            self._actions.append(Blank(worker.number, f"{decision.model} is to be there"))
        for member in group:
            self._advance(self.state.device_of(member))

    def _advance(self, device: Device) -> None:
        """See to the device's memory, and begin what waited for it or for the link."""
        self._actions += self._limits.settle(device, self._now)
        while worker := next_to_begin(self.state, device):
            self._begin_activation(worker)

    def _begin_activation(self, worker: Worker) -> None:
        assert worker.pending is not None
        pending, account = worker.pending, self.state.account(worker)
        self._actions.append(replace(pending.decision, kv_limit=account.limit, kv_revision=account.revision))
        worker.revived = pending.revives
        for member in self.state.group(worker):
            member.pending = None
        self._enter(worker, Phase.ACTIVATING)

    def _fail_overdue(self) -> None:
        for device in self.state.devices.values():
            for worker in overdue(self.state, device, self._now - self._pool.shrink_timeout):
                self._fail_preparation(worker, "its neighbours did not give back their KV cache in time")

    def _fail_preparation(self, worker: Worker, reason: str) -> None:
        """The worker and those of its group stay what they were, and their neighbours have their memory back."""
        worker = self.state.lead(worker)
        model, group = self.state.model_of(worker), self.state.group(worker)
        self._withdraw(worker)
        for member in group:
            self._actions += self._limits.take_back(self.state.device_of(member))
        self._activation_did_not_succeed(worker, model, reason)

    def _withdraw(self, worker: Worker) -> None:
        """Take back what nobody was told yet. A parked group stays one; a new one falls apart."""
        group = self.state.group(worker)
        assert worker.pending is not None
        worker.evicting = False
        if worker.pending.revives:
            self._enter(worker, Phase.PARKED)
        else:
            self.state.disband(worker)
            for member in group:
                assert member.pending is not None
                self._enter(member, _before(member.pending))
                member.model = member.pending.skeleton
        for member in group:
            if member.pending is not None and member.pending.granted:
                self.state.device_of(member).ledger.release(member.number, member.pending.held)
            member.pending = None

    def _enter(self, worker: Worker, phase: Phase) -> None:
        """Whoever dispatches is told which workers take requests."""
        was_active = worker.phase is Phase.ACTIVE
        self.state.enter(worker, phase, self._now)
        if worker.model is None:
            return
        if phase is Phase.ACTIVE:
            self._dispatcher.opens(worker)
        elif was_active:
            self._dispatcher.closes(worker)

    # workers

    def _worker_blank(self, event: WorkerBlank) -> None:
        worker = self.state.workers[event.worker]
        if worker.phase is Phase.ISOLATED:
            self._actions += self._isolations.blank(worker, event.held, self._now)
            return
        if worker.pending is not None:
            self._torn_down(worker, worker.pending, event.held)
            return
        self._enter(worker, Phase.BLANK)
        for member in self.state.group(worker):
            self._is_blank(member, event.held)
        self.state.disband(worker)
        self._refuse_impossible()
        self._plan()

    def _torn_down(self, worker: Worker, pending: Pending, held: int) -> None:
        """It goes on to the model for which that was done."""
        pending.skeleton, pending.held = None, held
        self.state.note_blank(worker, held)
        device = self.state.device_of(worker)
        if not pending.granted:
            device.ledger.measure(worker.number, held)
        self._advance(device)
        self._plan()

    def _is_blank(self, worker: Worker, held: int) -> None:
        device = self.state.device_of(worker)
        worker.model = None
        worker.held_blank = held
        worker.held_first = held if worker.held_first is None else worker.held_first
        device.ledger.release(worker.number, held)
        for other in self.state.on(device):
            if other.held_blank is None:  # It still starts, and will hold about as much.
                other.held_blank = held
                device.ledger.measure(other.number, held)

    def _copied(self, event: Copied) -> None:
        """The rest of an activation needs no link."""
        for member in self.state.group(self.state.workers[event.worker]):
            member.copying = False
            self._advance(self.state.device_of(member))

    def _rehearsing(self, event: Rehearsing) -> None:
        worker = self.state.workers[event.worker]
        for member in self.state.group(worker):
            member.rehearsing = event.begins and member.phase in CAN_REHEARSE
            self._advance(self.state.device_of(member))

    def _activated(self, event: Activated) -> None:
        worker, model = self.state.workers[event.worker], self.state.models[event.model]
        if worker.phase is Phase.ISOLATED:
            self._actions += self._isolations.activated(worker, self._now)
            return
        model.failures, model.failure, model.avoid = 0, "", None
        model.activation_seconds = smoothed(model.activation_seconds, event.seconds, SMOOTHING)
        self._observer.activated(worker, model, event.seconds)
        self._use(worker)
        group = self.state.group(worker)
        self._measure(group, model, event.held)
        self._enter(worker, Phase.ACTIVE)
        self._actions += self._limits.activated(worker)
        for member in group:
            self._advance(self.state.device_of(member))
        self._actions += self._commands.activated(worker, model, event.seconds)
        if worker.evicting:
            self._decide(Park(worker.number, "the operator evicts it"))
        self._serve(model)
        self._refuse_impossible()
        self._plan()

    def _limit_applied(self, event: LimitApplied) -> None:
        worker = self.state.workers[event.worker]
        device = self.state.device_of(worker)
        if not self._limits.answered(worker, event, self._now):
            reason = f"worker {worker.number} could not give back enough of its KV cache in time"
            for waiting in claims(self.state, device):
                self._fail_preparation(waiting, reason)
            self._actions += self._limits.take_back(device)
            self._plan()
        self._has_room(worker)
        self._advance(device)

    def _has_room(self, worker: Worker) -> None:
        """Its KV cache may have grown, or shrunk."""
        worker = self.state.lead(worker)
        self._dispatcher.frees(worker)
        if worker.phase is Phase.ACTIVE:
            self._dispatch(self.state.model_of(worker))

    def _parked(self, event: Parked) -> None:
        worker = self.state.workers[event.worker]
        if worker.phase is Phase.ISOLATED:
            self._actions += self._isolations.parked(worker, self._now)
            return
        worker.evicting = False
        self._enter(worker, Phase.PARKED)
        for member in self.state.group(worker):
            member.kv_mapped = 0
            self.state.device_of(member).ledger.release(member.number, event.held)
        self._actions += self._commands.parked(self.state.models[event.model])
        self._plan()

    def _activation_failed(self, event: ActivationFailed) -> None:
        worker, model = self.state.workers[event.worker], self.state.models[event.model]
        if worker.phase is Phase.ISOLATED:
            self._actions += self._isolations.failed(worker, event.reason, self._now)
            return
        self._enter(worker, Phase.BLANK)
        for member in self.state.group(worker):
            member.model = None
            self.state.device_of(member).ledger.release(member.number, event.held)
        self.state.disband(worker)
        worker.evicting = False
        self._activation_did_not_succeed(worker, model, event.reason)
        self._plan()

    def _activation_did_not_succeed(self, worker: Worker, model: Model, reason: str) -> None:
        model.avoid = worker.number
        self._actions += self._commands.gone(model, reason)
        self._actions += self._commands.failed_on(worker, model, reason)
        self._count_failure(model, reason)

    def _count_failure(self, model: Model, reason: str, *, final: bool = False) -> None:
        """Let the model try another worker once, then refuse what waits and back off."""
        model.failures = max(model.failures + 1, TRIES if final else 0)
        model.failure = reason
        if model.failures < TRIES:
            self.state.update_wanting(model, self._now)
            return
        backoff = min(BACKOFF_MAX, self._config.backoff * 2 ** (model.failures - TRIES))
        model.retry_at = self._now + backoff
        self._actions += self._commands.failed(model, reason)
        if not model.workers:
            self._refuse_waiting(model, f"{model.name} cannot be activated: {reason}", backoff)
        self.state.update_wanting(model, self._now)

    def _worker_dead(self, event: WorkerDead) -> None:
        worker = self.state.workers[event.worker]
        if worker.phase is Phase.ISOLATED:
            self._actions += self._isolations.died(worker, event.reason, self._now)
        else:
            suspects: list[Request] = []
            model = self._lose(worker, event.reason, suspects.append, set())
            if suspects:  # its place's next process starts when the driver has freed what this one had
                self.state.device_of(worker).ledger.release(worker.number, worker.held_blank or 0)
                self._isolate([worker], suspects, "crash")
            if model is not None:
                self._serve(model)
        self._plan()

    def _device_fault(self, event: DeviceFault) -> None:
        """Nobody is planned for before all are gone."""
        workers = [self.state.workers[number] for number in event.workers]
        workers = [worker for worker in workers if worker.phase is not Phase.ISOLATED]
        suspects: list[Request] = []
        fate = suspects.append if event.suspected else self._retry
        blameless = set() if event.suspected else set(self.state.models)
        lost = [self._lose(worker, event.reason, fate, blameless) for worker in workers]
        for worker in workers:  # who comes to this GPU next waits for its driver anyway
            self.state.device_of(worker).ledger.release(worker.number, worker.held_blank or 0)
        if suspects:
            self._isolate(workers, suspects, "fault")
        self._serve_most_wanted({model.name: model for model in lost if model is not None}.values())
        self._plan()

    def _isolate(self, lost: Sequence[Worker], suspects: Sequence[Request], charge: Charge) -> None:
        """Serve requests without a byte, one of which may have ended these workers, where they can end nobody else."""
        self._isolations.suspect(suspects, charge, self._now)
        self._set_apart_who_asks({request.body for request in suspects if request.body})
        isolating, others = self._isolations.take_in(lost, suspects, self._now)
        self._actions += isolating
        for request in others:
            self._retry_or_refuse(request)

    def _set_apart_who_asks(self, bodies: set[str]) -> None:
        """The same as a suspect, and waits."""
        same = [request for request in self.state.requests.values() if request.body in bodies]
        for request in same:
            model = self.state.models[request.model]
            if request.id in model.queue:
                self._take(request)
                self._actions += self._isolations.arrived(request, self._now)
                self.state.update_wanting(model, self._now)

    def _serve_most_wanted(self, models: Collection[Model]) -> None:
        """They have all lost their workers at this moment, and come back in the order of their requests' deadlines."""

        def urgency(model: Model) -> tuple[float, float, int]:
            deadline = model.queue.first_deadline()
            demand = model.demand.arrivals.per_second(self._now)
            return (float("inf") if deadline is None else deadline, -demand, model.index)

        for turn, model in enumerate(sorted(models, key=urgency)):
            self._dispatch(model)
            self.state.update_wanting(model, self._now)
            model.wanted_since = self._now - (len(models) - turn) * HEAD_START

    def _lose(self, worker: Worker, reason: str, fate: Callable[[Request], None], blameless: set[str]) -> Model | None:
        """A worker's process is gone; returns the model that it had. `fate` says what becomes of requests without a
        byte. That it was activating counts against a model, unless it is `blameless`, which it is from then on.
        """
        activating = worker.phase in (Phase.PREPARING, Phase.ACTIVATING)
        model = self.state.models[worker.model] if worker.model is not None else None
        starting_since = worker.since if worker.phase is Phase.STARTING else self._now
        leader = self.state.lead(worker)
        if leader.followers and leader.pending is not None:
            self._withdraw(leader)
        self._end_group(self.state.lead(worker), worker, reason, fate)
        worker.since = starting_since
        if model is None:
            return None
        self._actions += self._commands.gone(model, f"its worker {reason}")
        if activating:
            reason = f"worker {worker.number} {reason} while activating it"
            self._actions += self._commands.failed_on(leader, model, reason)
            if model.name not in blameless:
                blameless.add(model.name)
                model.avoid = worker.number
                self._count_failure(model, reason)
        return model

    def _end_group(self, leader: Worker, dead: Worker, reason: str, fate: Callable[[Request], None]) -> None:
        """A worker has died; the others of its group are of no use without it, and are replaced."""
        group = self.state.group(leader)
        self._enter(leader, Phase.STARTING)
        for member in group:
            self._is_gone(member)
        self._rescue(leader, reason, fate)
        self.state.disband(leader)
        for member in group:
            if member is not dead:
                self._actions.append(Recycle(member.number, f"worker {dead.number}, which acted with it, {reason}"))

    def _vacate(self, worker: Worker) -> None:
        """A worker by itself that runs nothing is to be isolated, and its process to be replaced."""
        self._enter(worker, Phase.STARTING)
        self._is_gone(worker)
        self.state.device_of(worker).ledger.release(worker.number, worker.held_blank or 0)

    def _is_gone(self, worker: Worker) -> None:
        """Its process ends, as it can do nothing without another's. The driver may take seconds to free its memory."""
        worker.model = None
        worker.pending = None
        worker.evicting = False
        worker.kv_mapped = 0
        worker.held_first = None
        self.state.device_of(worker).ledger.linger(worker.number)

    def _rescue(self, worker: Worker, reason: str, fate: Callable[[Request], None]) -> None:
        """End what had begun to answer; `fate` takes the rest."""
        for number in sorted(worker.running):
            request = self.state.requests[number]
            self._leave(worker, request)
            request.worker = None
            if request.first_token_at is not None:
                del self.state.requests[number]
                self._actions.append(Abort(number, f"the worker died: {reason}"))
            else:
                fate(request)
        worker.decoded = 0

    def _retry(self, request: Request) -> None:
        """It had nothing to do with its worker's end."""
        self._wait(self.state.models[request.model], request)

    def _retry_or_refuse(self, request: Request) -> None:
        """It may be what ended its worker."""
        request.deaths += 1
        if request.deaths >= MAX_DEATHS:
            self._refuse(request, "unavailable", f"{request.deaths} workers died under this request", 1.0)
        else:
            self._retry(request)

    def _stats(self, event: Stats) -> None:
        worker = self.state.workers[event.worker]
        if worker.leader is not None or worker.phase is Phase.ISOLATED:
            return
        for member in self.state.group(worker):
            member.kv_mapped = event.kv_bytes
        if worker.phase is Phase.ACTIVE and event.held > self.state.account(worker).held:
            self._measure(self.state.group(worker), self.state.model_of(worker), event.held)
        self._observer.decoded(worker, event.output_tokens, self._now)
        self._has_room(worker)

    def _measure(self, group: Sequence[Worker], model: Model, held: int) -> None:
        """What a worker holds grows with its steps, such as by the workspace of long prompts: the most counts."""
        model.held = max(held, model.held or 0)
        for member in group:
            self.state.device_of(member).ledger.measure(member.number, model.held)

    # host memory

    def _staged(self, event: Staged) -> None:
        model = self.state.models[event.model]
        self.state.staging_ends()
        self.state.is_staged(model, event.nbytes)
        self.state.estimates.disk.see(event.nbytes, self._now - self.state.host.staging_since)
        if self.state.host.used > self.state.host.capacity:
            self._decide(Unstage(model.name, "it is larger than its files promised; making room for it first"))
        self._refuse_impossible()
        self._plan()

    def _refuse_impossible(self) -> None:
        """Sizes are known better now: tell those who wait for what cannot be."""
        for model in [self.state.models[name] for name in self.state.wanting]:
            if self._now >= model.retry_at and (problem := obstacle(self.state, model)):
                self._count_failure(model, problem, final=True)
        for worker in self.state.workers:
            if worker.reserved_for is not None:
                model = self.state.models[worker.reserved_for]
                if problem := obstacle_from(self.state, model, worker):
                    self._actions += self._commands.failed_on(worker, model, problem)
                    self.state.update_wanting(model, self._now)

    def _stage_failed(self, event: StageFailed) -> None:
        self.state.staging_ends()
        self._count_failure(self.state.models[event.model], event.reason, final=True)
        self._plan()

    # operator

    def _operator_activate(self, event: OperatorActivate) -> None:
        model = self.state.models[event.model]
        self._actions += self._commands.activate(event.command, model, event.worker)
        model.retry_at = 0.0
        model.failures = 0
        model.dismissed = False
        self.state.update_wanting(model, self._now)
        self._plan()

    def _operator_evict(self, event: OperatorEvict) -> None:
        model = self.state.models[event.model]
        self._actions += self._commands.evict(event.command, model)
        model.dismissed = not model.pinned
        for worker in self.state.workers:
            if worker.evicting and worker.model == model.name and worker.phase in (Phase.ACTIVE, Phase.DRAINING):
                self._evict(worker, now=event.now)
        self._plan()

    def _evict(self, worker: Worker, *, now: bool) -> None:
        reason = "the operator evicts it"
        if now:
            for number in sorted(worker.running):
                self._leave(worker, self.state.requests.pop(number))
                self._actions.append(Abort(number, reason))
        if not worker.running:
            self._decide(Park(worker.number, reason))
        elif worker.phase is Phase.ACTIVE:
            self._decide(Drain(worker.number, reason))

    def _operator_gone(self, event: OperatorGone) -> None:
        self._commands.forget(event.command)
        for model in self.state.models.values():
            self.state.update_wanting(model, self._now)

    def _tick(self, event: Tick) -> None:
        if self._config.late == "refuse":
            self._refuse_late()
        self._fail_overdue()
        for model in self.state.models.values():
            if model.queue and model.workers:
                self._dispatch(model)
        self._seen_to.clear()
        self._plan()


def _before(pending: Pending) -> Phase:
    """What a worker is again whose activation is not to be."""
    if pending.tearing:
        return Phase.BLANKING
    return Phase.BLANK if pending.skeleton is None else Phase.PARKED
