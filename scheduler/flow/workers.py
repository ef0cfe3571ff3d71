"""What workers report as they do what they were told: blank, copied, active, parked, KV limits applied, statistics."""

from __future__ import annotations

from scheduler.actions import Park, Unstage
from scheduler.events import Activated, Copied, LimitApplied, Parked, Rehearsing, Staged, Stats, WorkerBlank
from scheduler.flow.dispatching import Dispatching
from scheduler.flow.failures import Failures
from scheduler.flow.isolation import Isolations
from scheduler.flow.lifecycle import Lifecycle
from scheduler.flow.operators import EVICTED
from scheduler.flow.planning import Planning
from scheduler.flow.reaction import Reaction
from scheduler.forecast.observer import Observer
from scheduler.learned.averages import smoothed
from scheduler.memory.budget import claims
from scheduler.memory.kv_limits import KvLimits
from scheduler.operator import Commands
from scheduler.state.entities import Model, Pending, Replica, Worker
from scheduler.state.phases import SERVING, Phase
from scheduler.state.state import State

CAN_REHEARSE = SERVING | {Phase.ACTIVATING}
SMOOTHING = 0.3
"""Weight of the newest activation in the moving average of their seconds."""


class Workers:
    def __init__(
        self,
        state: State,
        reaction: Reaction,
        *,
        observer: Observer,
        dispatching: Dispatching,
        lifecycle: Lifecycle,
        limits: KvLimits,
        commands: Commands,
        isolations: Isolations,
        planning: Planning,
        failures: Failures,
    ) -> None:
        self._state = state
        self._reaction = reaction
        self._observer = observer
        self._dispatching = dispatching
        self._lifecycle = lifecycle
        self._limits = limits
        self._commands = commands
        self._isolations = isolations
        self._planning = planning
        self._failures = failures

    # without a model

    def blank(self, event: WorkerBlank) -> None:
        worker = self._state.workers[event.worker]
        if worker.phase is Phase.ISOLATED:
            self._reaction.actions += self._isolations.blank(worker, event.held, self._reaction.now)
            return
        if worker.pending is not None:
            self._torn_down(worker, worker.pending, event.held)
            return
        replica = worker.replica
        self._lifecycle.enter(replica, Phase.BLANK)
        replica.model = None
        for member in replica.workers:
            self._note_blank(member, event.held)
        self._state.disband(replica)
        self._failures.refuse_impossible()
        self._planning.plan()

    def _torn_down(self, worker: Worker, pending: Pending, held: int) -> None:
        """It goes on to the model for which that was done."""
        pending.skeleton, pending.held = None, held
        self._state.note_blank(worker, held)
        device = self._state.device_of(worker)
        if not pending.granted:
            device.ledger.measure(worker.number, held)
        self._lifecycle.advance(device)
        self._planning.plan()

    def _note_blank(self, worker: Worker, held: int) -> None:
        device = self._state.device_of(worker)
        worker.held_blank = held
        worker.held_first = held if worker.held_first is None else worker.held_first
        device.ledger.release(worker.number, held)
        for other in self._state.on(device):
            if other.held_blank is None:  # It still starts, and will hold about as much.
                other.held_blank = held
                device.ledger.measure(other.number, held)

    # with a model

    def copied(self, event: Copied) -> None:
        """The rest of an activation needs no link."""
        replica = self._state.workers[event.worker].replica
        replica.copying = False
        for member in replica.workers:
            self._lifecycle.advance(self._state.device_of(member))

    def rehearsing(self, event: Rehearsing) -> None:
        replica = self._state.workers[event.worker].replica
        replica.rehearsing = event.begins and replica.phase in CAN_REHEARSE
        for member in replica.workers:
            self._lifecycle.advance(self._state.device_of(member))

    def activated(self, event: Activated) -> None:
        worker, model = self._state.workers[event.worker], self._state.models[event.model]
        if worker.phase is Phase.ISOLATED:
            self._reaction.actions += self._isolations.activated(worker, self._reaction.now)
            return
        model.failures, model.failure, model.avoid = 0, "", None
        model.activation_seconds = smoothed(model.activation_seconds, event.seconds, SMOOTHING)
        self._observer.activated(worker, model, event.seconds)
        replica = worker.replica
        replica.last_used = self._reaction.now
        self._measure(replica, model, event.held)
        self._lifecycle.enter(replica, Phase.ACTIVE)
        self._reaction.actions += self._limits.activated(worker)
        for member in replica.workers:
            self._lifecycle.advance(self._state.device_of(member))
        self._reaction.actions += self._commands.activated(worker, model, event.seconds)
        if worker.evicting:
            self._lifecycle.decide(Park(worker.number, EVICTED))
        self._planning.serve(model)
        self._failures.refuse_impossible()
        self._planning.plan()

    def parked(self, event: Parked) -> None:
        worker = self._state.workers[event.worker]
        if worker.phase is Phase.ISOLATED:
            self._reaction.actions += self._isolations.parked(worker, self._reaction.now)
            return
        worker.evicting = False
        self._lifecycle.enter(worker.replica, Phase.PARKED)
        for member in worker.replica.workers:
            member.kv_mapped = 0
            self._state.device_of(member).ledger.release(member.number, event.held)
        self._reaction.actions += self._commands.parked(self._state.models[event.model])
        self._planning.plan()

    def limit_applied(self, event: LimitApplied) -> None:
        worker = self._state.workers[event.worker]
        device = self._state.device_of(worker)
        if not self._limits.answered(worker, event, self._reaction.now):
            reason = f"worker {worker.number} could not give back enough of its KV cache in time"
            for waiting in claims(self._state, device):
                self._failures.fail_preparation(waiting, reason)
            self._reaction.actions += self._limits.take_back(device)
            self._planning.plan()
        self._dispatching.has_room(worker)
        self._lifecycle.advance(device)

    def stats(self, event: Stats) -> None:
        worker = self._state.workers[event.worker]
        if not worker.leads or worker.phase is Phase.ISOLATED:
            return
        for member in worker.replica.workers:
            member.kv_mapped = event.kv_bytes
        if worker.phase is Phase.ACTIVE and event.held > self._state.account(worker).held:
            self._measure(worker.replica, self._state.model_of(worker), event.held)
        self._observer.decoded(worker, event.output_tokens, self._reaction.now)
        self._dispatching.has_room(worker)

    def _measure(self, replica: Replica, model: Model, held: int) -> None:
        """What a worker holds grows with its steps, such as by the workspace of long prompts: the most counts."""
        model.held = max(held, model.held or 0)
        for member in replica.workers:
            self._state.device_of(member).ledger.measure(member.number, model.held)

    # host memory

    def staged(self, event: Staged) -> None:
        model = self._state.models[event.model]
        self._state.staging_ends()
        self._state.is_staged(model, event.nbytes)
        self._state.estimates.disk.see(event.nbytes, self._reaction.now - self._state.host.staging_since)
        if self._state.host.used > self._state.host.capacity:
            self._lifecycle.decide(
                Unstage(model.name, "it is larger than its files promised; making room for it first")
            )
        self._failures.refuse_impossible()
        self._planning.plan()
