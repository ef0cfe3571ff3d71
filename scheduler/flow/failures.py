"""What goes wrong: activations and loads that fail, processes that die, GPUs that fail, and what cannot be at all.

A model may fail once and try another worker; from the second failure in a row on, its requests are refused and it
waits, each time twice as long, before it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from config.registry import Registry
from scheduler.actions import Abort, Recycle
from scheduler.events import ActivationFailed, DeviceFault, StageFailed, WorkerDead
from scheduler.flow.dispatching import Dispatching
from scheduler.flow.isolation import Isolations
from scheduler.flow.lifecycle import Lifecycle
from scheduler.flow.planning import Planning
from scheduler.flow.reaction import Reaction
from scheduler.flow.suspects import Suspects
from scheduler.memory.activation_order import overdue
from scheduler.memory.feasibility import obstacle, obstacle_from
from scheduler.memory.kv_limits import KvLimits
from scheduler.operator import Commands
from scheduler.state.entities import Charge, Model, Replica, Request, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

MAX_DEATHS = 2
"""Workers that may die under a request before it is refused: it may be what kills them."""
HEAD_START = 1e-6
"""Seconds that one model counts as having waited longer than the next, of those that lose their workers together."""
TRIES = 2
"""Activations of a model that may fail in a row, each on another worker, before its requests are refused."""
BACKOFF_MAX = 60.0
"""Seconds."""


class Failures:
    def __init__(
        self,
        state: State,
        reaction: Reaction,
        registry: Registry,
        *,
        dispatching: Dispatching,
        lifecycle: Lifecycle,
        limits: KvLimits,
        commands: Commands,
        suspects: Suspects,
        isolations: Isolations,
        planning: Planning,
    ) -> None:
        self._state = state
        self._reaction = reaction
        self._backoff = registry.scheduler.backoff
        self._shrink_timeout = registry.pool.shrink_timeout
        self._dispatching = dispatching
        self._lifecycle = lifecycle
        self._limits = limits
        self._commands = commands
        self._suspects = suspects
        self._isolations = isolations
        self._planning = planning

    # activations and loads

    def activation_failed(self, event: ActivationFailed) -> None:
        worker, model = self._state.workers[event.worker], self._state.models[event.model]
        if worker.phase is Phase.ISOLATED:
            self._reaction.actions += self._isolations.failed(worker, event.reason, self._reaction.now)
            return
        replica = worker.replica
        self._lifecycle.enter(replica, Phase.BLANK)
        replica.model = None
        for member in replica.workers:
            self._state.device_of(member).ledger.release(member.number, event.held)
        self._state.disband(replica)
        worker.evicting = False
        self._activation_did_not_succeed(worker, model, event.reason)
        self._planning.plan()

    def stage_failed(self, event: StageFailed) -> None:
        self._state.staging_ends()
        self._count_failure(self._state.models[event.model], event.reason, final=True)
        self._planning.plan()

    def fail_overdue(self) -> None:
        """Time has passed: give up activations whose neighbours do not give back their memory."""
        before = self._reaction.now - self._shrink_timeout
        for device in self._state.devices.values():
            for worker in overdue(self._state, device, before):
                self.fail_preparation(worker, "its neighbours did not give back their KV cache in time")

    def fail_preparation(self, worker: Worker, reason: str) -> None:
        """The worker and those of its group stay what they were, and their neighbours have their memory back."""
        worker = worker.replica.lead
        model, group = self._state.model_of(worker), worker.replica.workers
        self._lifecycle.withdraw(worker)
        for member in group:
            self._reaction.actions += self._limits.take_back(self._state.device_of(member))
        self._activation_did_not_succeed(worker, model, reason)

    def _activation_did_not_succeed(self, worker: Worker, model: Model, reason: str) -> None:
        model.avoid = worker.number
        self._reaction.actions += self._commands.gone(model, reason)
        self._reaction.actions += self._commands.failed_on(worker, model, reason)
        self._count_failure(model, reason)

    def _count_failure(self, model: Model, reason: str, *, final: bool = False) -> None:
        """Let the model try another worker once, then refuse what waits and back off."""
        now = self._reaction.now
        model.failures = max(model.failures + 1, TRIES if final else 0)
        model.failure = reason
        if model.failures < TRIES:
            self._state.update_wanting(model, now)
            return
        backoff = min(BACKOFF_MAX, self._backoff * 2 ** (model.failures - TRIES))
        model.retry_at = now + backoff
        self._reaction.actions += self._commands.failed(model, reason)
        if not model.workers:
            self._dispatching.refuse_waiting(model, f"{model.name} cannot be activated: {reason}", backoff)
        self._state.update_wanting(model, now)

    def refuse_impossible(self) -> None:
        """Sizes are known better now: tell those who wait for what cannot be."""
        for model in [self._state.models[name] for name in self._state.wanting]:
            if self._reaction.now >= model.retry_at and (problem := obstacle(self._state, model)):
                self._count_failure(model, problem, final=True)
        for worker in self._state.workers:
            if worker.reserved_for is not None:
                model = self._state.models[worker.reserved_for]
                if problem := obstacle_from(self._state, model, worker):
                    self._reaction.actions += self._commands.failed_on(worker, model, problem)
                    self._state.update_wanting(model, self._reaction.now)

    # processes and GPUs

    def worker_dead(self, event: WorkerDead) -> None:
        worker = self._state.workers[event.worker]
        if worker.phase is Phase.ISOLATED:
            self._reaction.actions += self._isolations.died(worker, event.reason, self._reaction.now)
        else:
            suspects: list[Request] = []
            model = self._lose(worker, event.reason, suspects.append, set())
            if suspects:  # its place's next process starts when the driver has freed what this one had
                self._state.device_of(worker).ledger.release(worker.number, worker.held_blank or 0)
                self._isolate([worker], suspects, "crash")
            if model is not None:
                self._planning.serve(model)
        self._planning.plan()

    def device_fault(self, event: DeviceFault) -> None:
        """All of its workers are lost before anything is planned: none of them is a place for what another one had."""
        workers = [self._state.workers[number] for number in event.workers]
        workers = [worker for worker in workers if worker.phase is not Phase.ISOLATED]
        suspects: list[Request] = []
        fate = suspects.append if event.suspected else self._retry
        blameless = set() if event.suspected else set(self._state.models)
        lost = [self._lose(worker, event.reason, fate, blameless) for worker in workers]
        for worker in workers:  # who comes to this GPU next waits for its driver anyway
            self._state.device_of(worker).ledger.release(worker.number, worker.held_blank or 0)
        if suspects:
            self._isolate(workers, suspects, "fault")
        self._serve_most_wanted({model.name: model for model in lost if model is not None}.values())
        self._planning.plan()

    def _serve_most_wanted(self, models: Collection[Model]) -> None:
        """They have all lost their workers at this moment, and come back in the order of their requests' deadlines."""
        now = self._reaction.now

        def urgency(model: Model) -> tuple[float, float, int]:
            deadline = model.queue.first_deadline()
            demand = model.demand.arrivals.per_second(now)
            return (float("inf") if deadline is None else deadline, -demand, model.index)

        for turn, model in enumerate(sorted(models, key=urgency)):
            self._dispatching.dispatch(model)
            self._state.update_wanting(model, now)
            model.wanted_since = now - (len(models) - turn) * HEAD_START

    def _lose(self, worker: Worker, reason: str, fate: Callable[[Request], None], blameless: set[str]) -> Model | None:
        """A worker's process is gone; returns the model that it had. `fate` says what becomes of requests without a
        byte. That it was activating counts against a model, unless it is `blameless`, which it is from then on.
        """
        activating = worker.phase in (Phase.PREPARING, Phase.ACTIVATING)
        model = self._state.models[worker.model] if worker.model is not None else None
        starting_since = worker.since if worker.phase is Phase.STARTING else self._reaction.now
        leader = worker.replica.lead
        if worker.grouped and leader.pending is not None:
            self._lifecycle.withdraw(leader)
        self._end(worker.replica, worker, reason, fate)
        worker.replica.since = starting_since
        if model is None:
            return None
        self._reaction.actions += self._commands.gone(model, f"its worker {reason}")
        if activating:
            reason = f"worker {worker.number} {reason} while activating it"
            self._reaction.actions += self._commands.failed_on(leader, model, reason)
            if model.name not in blameless:
                blameless.add(model.name)
                model.avoid = worker.number
                self._count_failure(model, reason)
        return model

    def _end(self, replica: Replica, dead: Worker, reason: str, fate: Callable[[Request], None]) -> None:
        """A worker has died; the others of its replica are of no use without it, and are replaced."""
        group = replica.workers
        self._lifecycle.enter(replica, Phase.STARTING)
        for member in group:
            self._lifecycle.process_ends(member)
        self._rescue(replica.lead, reason, fate)
        self._state.disband(replica)
        for member in group:
            if member is not dead:
                recycled = Recycle(member.number, f"worker {dead.number}, which acted with it, {reason}")
                self._reaction.actions.append(recycled)

    # their requests

    def _rescue(self, worker: Worker, reason: str, fate: Callable[[Request], None]) -> None:
        """End what had begun to answer, since nobody else can go on with it; `fate` takes the rest."""
        for number in sorted(worker.running):
            request = self._state.requests[number]
            self._dispatching.leave(worker, request)
            request.worker = None
            if request.first_token_at is not None:
                del self._state.requests[number]
                self._reaction.actions.append(Abort(number, f"the worker died: {reason}"))
            else:
                fate(request)
        worker.decoded = 0

    def _isolate(self, lost: Sequence[Worker], suspects: Sequence[Request], charge: Charge) -> None:
        """Serve requests without a byte, one of which may have ended these workers, where they can end nobody else."""
        now = self._reaction.now
        self._suspects.suspect(suspects, charge, now)
        self._set_apart_who_asks({request.body for request in suspects if request.body})
        isolating, others = self._isolations.take_in(lost, suspects, now)
        self._reaction.actions += isolating
        for request in others:
            self._retry_or_refuse(request)

    def _set_apart_who_asks(self, bodies: set[str]) -> None:
        """Requests that wait and ask the same as a suspect are suspects, too."""
        same = [request for request in self._state.requests.values() if request.body in bodies]
        for request in same:
            model = self._state.models[request.model]
            if request.id in model.queue:
                self._dispatching.take(request)
                self._reaction.actions += self._isolations.arrived(request, self._reaction.now)
                self._state.update_wanting(model, self._reaction.now)

    def _retry(self, request: Request) -> None:
        """It had nothing to do with its worker's end."""
        self._dispatching.wait(request)

    def _retry_or_refuse(self, request: Request) -> None:
        """It may be what ended its worker."""
        request.deaths += 1
        if request.deaths >= MAX_DEATHS:
            self._dispatching.refuse(request, "unavailable", f"{request.deaths} workers died under this request", 1.0)
        else:
            self._retry(request)
