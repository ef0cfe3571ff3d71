"""The life of workers: how a decision changes what they do, and when an activation that was decided begins."""

from __future__ import annotations

from msgspec.structs import replace

from scheduler.actions import Activate, Blank, Decision, Drain, Park, Recycle, Resume, Stage, Unstage
from scheduler.dispatch.by_deadline import ByDeadline
from scheduler.flow.dispatching import Dispatching
from scheduler.flow.reaction import Reaction
from scheduler.memory.activation_order import next_to_begin
from scheduler.memory.kv_limits import KvLimits
from scheduler.operator import Commands
from scheduler.state.entities import Device, Pending, Replica, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State


class Lifecycle:
    def __init__(
        self,
        state: State,
        reaction: Reaction,
        dispatcher: ByDeadline,
        dispatching: Dispatching,
        limits: KvLimits,
        commands: Commands,
    ) -> None:
        self._state = state
        self._reaction = reaction
        self._dispatcher = dispatcher
        self._dispatching = dispatching
        self._limits = limits
        self._commands = commands

    def enter(self, replica: Replica, phase: Phase) -> None:
        """Whoever dispatches is told if the replica takes requests from here on, or does no more."""
        was_active = replica.phase is Phase.ACTIVE
        self._state.enter(replica, phase, self._reaction.now)
        if replica.model is None:
            return
        if phase is Phase.ACTIVE:
            self._dispatcher.opens(replica.lead)
        elif was_active:
            self._dispatcher.closes(replica.lead)

    def decide(self, decision: Decision) -> None:
        """Apply a decision to the state, and hand it out; an activation, once its device has memory and link for it."""
        if isinstance(decision, Activate):
            self._prepare(decision)
            return
        self._reaction.actions.append(decision)
        match decision:
            case Drain():
                worker = self._state.workers[decision.worker]
                self.enter(worker.replica, Phase.DRAINING)
                self.park_if_drained(worker, decision.reason)
            case Resume():
                self._resume(self._state.workers[decision.worker])
            case Park():
                self.enter(self._state.workers[decision.worker].replica, Phase.PARKING)
            case Blank():
                self.enter(self._state.workers[decision.worker].replica, Phase.BLANKING)
            case Recycle():
                self.enter(self._state.workers[decision.worker].replica, Phase.STARTING)
                self._state.workers[decision.worker].held_first = None
            case Stage():
                self._state.staging_begins(self._state.models[decision.model], self._reaction.now)
            case Unstage():
                self._state.unstage(self._state.models[decision.model])

    def park_if_drained(self, worker: Worker, reason: str) -> None:
        if worker.phase is Phase.DRAINING and not worker.running:
            self.decide(Park(worker.number, reason))

    def _resume(self, worker: Worker) -> None:
        model = self._state.model_of(worker)
        self.enter(worker.replica, Phase.ACTIVE)
        self._reaction.actions += self._commands.resumed(worker, model)
        self._dispatching.dispatch(model)

    # activations

    def _prepare(self, decision: Activate) -> None:
        """The worker is the model's from now on. It is told so by `advance`, once it can begin at once."""
        worker = self._state.workers[decision.worker]
        group = [worker, *(self._state.workers[number] for number in decision.followers)]
        for member in group:
            held = self._state.account(member).held
            member.pending = Pending(decision, skeleton=member.model, held=held, last_used=member.last_used)
        self._state.gather(group)
        worker.replica.model = decision.model
        worker.reserved_for = None
        worker.evicting = False
        self.enter(worker.replica, Phase.PREPARING)
        if worker.tearing:
            self._reaction.actions.append(Blank(worker.number, f"{decision.model} is to be there"))
        for member in group:
            self.advance(self._state.device_of(member))

    def advance(self, device: Device) -> None:
        """See to the device's memory, and begin what waited for it or for the link."""
        self._reaction.actions += self._limits.settle(device, self._reaction.now)
        while worker := next_to_begin(self._state, device):
            self._begin_activation(worker)

    def _begin_activation(self, worker: Worker) -> None:
        assert worker.pending is not None
        pending, account = worker.pending, self._state.account(worker)
        self._reaction.actions.append(replace(pending.decision, kv_limit=account.limit, kv_revision=account.revision))
        worker.replica.revived = pending.revives
        for member in worker.replica.workers:
            member.pending = None
        self.enter(worker.replica, Phase.ACTIVATING)

    def withdraw(self, worker: Worker) -> None:
        """Take back an activation that nobody was told of yet. A parked group stays one; a new one falls apart."""
        group = worker.replica.workers
        assert worker.pending is not None
        worker.evicting = False
        if worker.pending.revives:
            self.enter(worker.replica, Phase.PARKED)
        else:
            self._state.disband(worker.replica)
            for member in group:
                self._becomes_what_it_was(member)
        for member in group:
            if member.pending is not None and member.pending.granted:
                self._state.device_of(member).ledger.release(member.number, member.pending.held)
            member.pending = None

    def _becomes_what_it_was(self, worker: Worker) -> None:
        replica, pending = worker.replica, worker.pending
        assert pending is not None
        # The model is still named while its worker leaves it: so it is taken off the model's workers.
        self.enter(replica, _before(pending))
        replica.model, replica.last_used = pending.skeleton, pending.last_used

    # processes

    def vacate(self, worker: Worker) -> None:
        """A worker by itself that runs nothing is to be isolated, and its process to be replaced."""
        self.enter(worker.replica, Phase.STARTING)
        self.process_ends(worker)
        self._state.device_of(worker).ledger.release(worker.number, worker.held_blank or 0)

    def process_ends(self, worker: Worker) -> None:
        """Its process is gone, or is useless without another one that is. The driver may take seconds to free its
        memory.
        """
        worker.replica.model = None
        worker.pending = None
        worker.evicting = False
        worker.kv_mapped = 0
        worker.held_first = None
        self._state.device_of(worker).ledger.linger(worker.number)


def _before(pending: Pending) -> Phase:
    """The phase to which a worker returns whose activation is withdrawn."""
    if pending.tearing:
        return Phase.BLANKING
    return Phase.BLANK if pending.skeleton is None else Phase.PARKED
