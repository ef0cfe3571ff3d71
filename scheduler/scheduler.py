"""The scheduler: events in, actions out. No I/O and no clock; the same object serves the gateway and a simulator.

Each event goes to one part of `scheduler.flow`: to requests, workers, failures or operators. They keep the books
(`scheduler.state`), dispatch in deadline order (`scheduler.dispatch`), and ask the policy (`scheduler.policies`) which
model gets which worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from config.registry import Registry
from scheduler.actions import AnyAction
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
from scheduler.flow.dispatching import Dispatching
from scheduler.flow.failures import Failures
from scheduler.flow.isolation import Isolations
from scheduler.flow.lifecycle import Lifecycle
from scheduler.flow.operators import Operators
from scheduler.flow.planning import Planning
from scheduler.flow.reaction import Reaction
from scheduler.flow.requests import Requests
from scheduler.flow.suspects import Suspects
from scheduler.flow.workers import Workers
from scheduler.forecast.observer import Observer
from scheduler.learned.profile import Profile
from scheduler.memory.kv_limits import KvLimits
from scheduler.operator import Commands
from scheduler.policies import policy_of
from scheduler.policies.policy import Policy
from scheduler.state.build_state import build_state
from scheduler.state.invariants import check
from scheduler.state.state import State


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
        self._validate = validate
        self._begun = False
        policy = policy or policy_of(registry)
        self.state = build_state(
            registry, weight_bytes, kv_bytes or {}, capacities or {}, profile or Profile(), staging=staging
        )
        observer = Observer(self.state)
        policy.prepare(self.state)
        for name, nbytes in (staged or {}).items():
            self.state.is_staged(self.state.models[name], nbytes)
        self._build(registry, policy, observer)
        for model in self.state.models.values():
            self.state.update_wanting(model, 0.0)

    def _build(self, registry: Registry, policy: Policy, observer: Observer) -> None:
        """The parts, each from those below it."""
        state, reaction = self.state, Reaction()
        limits = KvLimits(state, registry.pool, elastic=policy.elastic)
        commands = Commands(state)
        dispatcher = _dispatcher(state, policy, registry)
        dispatching = Dispatching(
            state, reaction, dispatcher, observer, refuses_late=registry.scheduler.late == "refuse"
        )
        lifecycle = Lifecycle(state, reaction, dispatcher, dispatching, limits, commands)
        suspects = Suspects(state)
        isolations = Isolations(state, suspects, lifecycle, max_running=registry.pool.max_running)
        planning = Planning(state, reaction, policy, dispatching, lifecycle, isolations)
        self._reaction = reaction
        self._dispatching = dispatching
        self._planning = planning
        self._failures = Failures(
            state,
            reaction,
            registry,
            dispatching=dispatching,
            lifecycle=lifecycle,
            limits=limits,
            commands=commands,
            suspects=suspects,
            isolations=isolations,
            planning=planning,
        )
        self._requests = Requests(
            state,
            reaction,
            registry,
            observer=observer,
            dispatcher=dispatcher,
            dispatching=dispatching,
            lifecycle=lifecycle,
            suspects=suspects,
            isolations=isolations,
            planning=planning,
        )
        self._workers = Workers(
            state,
            reaction,
            observer=observer,
            dispatching=dispatching,
            lifecycle=lifecycle,
            limits=limits,
            commands=commands,
            isolations=isolations,
            planning=planning,
            failures=self._failures,
        )
        self._operators = Operators(
            state, reaction, commands=commands, dispatching=dispatching, lifecycle=lifecycle, planning=planning
        )

    def handle(self, event: AnyEvent, now: float) -> list[AnyAction]:
        """Take one event at `now` (monotonic seconds, never less than before); returns what to do, in order."""
        if not self._begun:
            self._begin(now)
        self._reaction.begin(now)
        self._react(event)
        if self._validate:
            check(self.state)
        return self._reaction.actions

    def _begin(self, now: float) -> None:
        """The clock may stand anywhere at the first event: all workers have been starting since then."""
        self._begun = True
        for worker in self.state.workers:
            worker.replica.since = now

    def _react(self, event: AnyEvent) -> None:
        """The most frequent events come first: they are looked for in this order."""
        match event:
            case Arrived():
                self._requests.arrived(event)
            case Counted():
                self._requests.counted(event)
            case FirstToken():
                self._requests.first_token(event)
            case Finished():
                self._requests.finished(event)
            case Stats():
                self._workers.stats(event)
            case Tick():
                self._tick()
            case Aborted():
                self._requests.aborted(event)
            case LimitApplied():
                self._workers.limit_applied(event)
            case Copied():
                self._workers.copied(event)
            case Rehearsing():
                self._workers.rehearsing(event)
            case Activated():
                self._workers.activated(event)
            case ActivationFailed():
                self._failures.activation_failed(event)
            case Parked():
                self._workers.parked(event)
            case WorkerBlank():
                self._workers.blank(event)
            case WorkerDead():
                self._failures.worker_dead(event)
            case DeviceFault():
                self._failures.device_fault(event)
            case Staged():
                self._workers.staged(event)
            case StageFailed():
                self._failures.stage_failed(event)
            case OperatorActivate():
                self._operators.activate(event)
            case OperatorEvict():
                self._operators.evict(event)
            case OperatorGone():
                self._operators.gone(event)
            case _:
                assert_never(event)

    def _tick(self) -> None:
        """Time has passed: what waited for that is due."""
        self._dispatching.refuse_late()
        self._failures.fail_overdue()
        for model in self.state.models.values():
            if model.queue and model.workers:
                self._dispatching.dispatch(model)
        self._planning.forget_devices()
        self._planning.plan()


def _dispatcher(state: State, policy: Policy, registry: Registry) -> ByDeadline:
    running = registry.pool.max_running
    if policy.by_admission:
        return Admission(state, policy, running, registry.scheduler.ahead)
    return ByDeadline(state, policy, running)
