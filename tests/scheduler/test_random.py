"""Any mix of traffic, faults and operators: nothing is lost, nothing is answered twice, no worker is told nonsense."""

from __future__ import annotations

import os
from collections import Counter
from random import Random
from typing import get_args

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from config.registry import PolicyName
from scheduler.actions import (
    Abort,
    Activate,
    Answer,
    AnyAction,
    Blank,
    Dispatch,
    Drain,
    Park,
    Recycle,
    Refuse,
    Resume,
    SetKvLimit,
    Stage,
    Unstage,
)
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
    Tick,
    WorkerBlank,
    WorkerDead,
)
from scheduler.flow.suspects import MEMORY
from scheduler.scheduler import Scheduler
from tests.rig.fake_pool import GIB, Bench, model, registry

EXAMPLES = int(os.environ.get("PRISM_EXAMPLES", "150"))
NAMES = ("a", "b", "c", "d")
POLICIES = get_args(PolicyName)
SETTLING_ROUNDS = 300
"""Rounds of one second in which everything must come to rest once the faults have ended: far more than any back-off."""


BODIES = st.sampled_from(["", "", "one", "two"])
ANYWHERE = "anywhere"
"""Of a suspect: any device will do."""


class Pool(RuleBasedStateMachine):
    """A pool that carries out what it is told when a rule lets it, with its own idea of what each worker does.

    A worker is `starting`, `blank`, `activating`, `active`, `parking`, `parked` or `blanking`. On a device with
    `memory` it holds 1 GiB when blank, 2 with a model, and its KV cache may be as large as the limit that it obeys.
    """

    @initialize(
        workers=st.integers(1, 3),
        devices=st.sampled_from([("cpu",), ("cpu", "cpu1"), ("cpu", "cpu1", "cpu2")]),
        max_running=st.integers(1, 2),
        queue=st.sampled_from([1, 3, 100]),
        reserve=st.integers(0, 1),
        late=st.sampled_from(["serve", "refuse"]),
        policy=st.sampled_from(POLICIES),
        pinned=st.sets(st.sampled_from(NAMES), max_size=1),
        preload=st.sets(st.sampled_from(NAMES), max_size=1),
        priorities=st.lists(st.integers(0, 3), min_size=4, max_size=4),
        weights=st.one_of(st.just({}), st.fixed_dictionaries({name: st.integers(1, 12) for name in NAMES})),
        memory=st.sampled_from([None, 9, 14, 20]),
        copies=st.sampled_from([None, 1]),
        spread=st.sets(st.sampled_from(NAMES), max_size=2),
        leak=st.booleans(),
        started=st.booleans(),
    )
    def build(
        self,
        workers: int,
        devices: tuple[str, ...],
        max_running: int,
        queue: int,
        reserve: int,
        late: str,
        policy: str,
        pinned: set[str],
        preload: set[str],
        priorities: list[int],
        weights: dict[str, int],
        memory: int | None,
        copies: int | None,
        spread: set[str],
        leak: bool,
        started: bool,
    ) -> None:
        self.shards = {name: min(2, len(devices)) if name in spread else 1 for name in NAMES}
        models = [
            model(
                name,
                pinned=name in pinned,
                preload=name in preload,
                priority=priority,
                tensor_parallel=self.shards[name],
            )
            for name, priority in zip(NAMES, priorities, strict=True)
        ]
        self.max_running = max_running
        self.pinned = pinned
        self.weights = {name: nbytes * GIB for name, nbytes in weights.items()}
        self.needs_weights = bool(weights)
        self.scheduler = Scheduler(
            registry(
                models,
                workers=workers,
                devices=devices,
                max_running=max_running,
                queue=queue,
                blank_reserve=reserve,
                host_memory=10 * GIB,
                copies=copies,
                late=late,
                policy=policy,
                idle_timeout=20.0,
            ),
            self.weights,
            capacities={} if memory is None else dict.fromkeys(devices, memory * GIB),
            kv_bytes=dict.fromkeys(NAMES, 2**17),
            validate=True,
        )
        if policy in ("static", "space"):
            self.pinned = {name for name, found in self.scheduler.state.models.items() if found.pinned}
        self.kept = self.pinned | preload
        self.parks_idle = policy not in ("prism", "prism-paper", "swap")
        self.workers = workers * len(devices)
        self.device = [device for device in devices for _ in range(workers)]
        self.copies = copies
        self.memory = None if memory is None else memory * GIB
        self.leak = leak
        self.rebuilds = [0] * self.workers
        self.obeyed = [0] * self.workers
        """The KV limit that each worker keeps to."""
        self.told: dict[int, SetKvLimit] = {}
        """Lower limits that workers do not keep to yet."""
        self.phase = ["starting"] * self.workers
        self.model: list[str | None] = [None] * self.workers
        self.leader = list(range(self.workers))
        """Who speaks for each worker: another one where they act as one."""
        self.copied: set[int] = set()
        """Those who had their weights when they last activated."""
        self.broken: set[int] = set()
        """Workers that another of their group has left behind."""
        self.closed = [False] * self.workers
        """Whether a worker is being drained."""
        self.running: list[set[int]] = [set() for _ in range(self.workers)]
        self.staged: set[str] = set()
        self.staging: str | None = None
        self.isolated: set[int] = set()
        """Workers that serve none but suspected requests."""
        self.suspects: dict[int, str] = {}
        """Those that wait for it, and their devices."""
        self.body: dict[int, str] = {}
        self.convicted: dict[str, float] = {}
        """What was asked by those that ended a worker alone, and until when nobody may ask it."""
        self.waiting: dict[int, str] = {}
        self.streaming: set[int] = set()
        self.tried_alone: set[int] = set()
        """Requests that were alone on an isolated worker when it died."""
        self.over: Counter[int] = Counter()
        self.commands: set[int] = set()
        self.numbers = 0
        self.now = 1000.0
        if started:
            self.all_workers_are_done()

    # the world

    def held(self, worker: int) -> int:
        """Of its device's memory, besides weights and KV cache."""
        if self.memory is None:
            return 0
        leaked = self.rebuilds[worker] * GIB // 3 if self.leak else 0
        return (1 if self.phase[worker] in ("starting", "blank") else 2) * GIB + leaked

    def tell(self, event: AnyEvent) -> None:
        for action in self.scheduler.handle(event, self.now):
            self.obey(action)

    def obey(self, action: AnyAction) -> None:
        match action:
            case Dispatch(request, worker):
                assert self.phase[worker] == "active"
                assert not self.closed[worker], "dispatched to a worker that is being drained"
                suspected = self.suspects.pop(request, None)
                if not self.scheduler.state.requests[request].isolated:  # there was no memory for it apart
                    suspected = None
                assert (worker in self.isolated) == (suspected is not None)
                assert suspected in (None, ANYWHERE, self.device[worker])
                assert self.convicted.get(self.body[request], 0.0) <= self.now, "the same is let in again"
                assert self.model[worker] == self.waiting.pop(request)
                self.running[worker].add(request)
                assert len(self.running[worker]) <= self.max_running
            case Refuse(request, kind, reason, retry_after):
                del self.waiting[request]
                self.suspects.pop(request, None)
                self.over[request] += 1
                assert reason
                deadly = kind in ("fault", "crash")
                assert (retry_after > 0) == (not deadly)
                assert not deadly or request in self.tried_alone or self.body[request] in self.convicted
                if deadly:
                    self.convict(request)
            case Abort(request):
                assert any(request in running for running in self.running) or request in self.streaming
                if request in self.tried_alone:
                    self.convict(request)
                self.end(request)
            case Activate(leader, name, _, kv_limit, _, followers):
                group = (leader, *followers)
                assert len({self.device[worker] for worker in group}) == len(group) == self.shards[name]
                assert not self.needs_weights or name in self.staged
                assert self.group(leader) in ({leader}, set(group))
                for worker in group:
                    assert self.phase[worker] in ("blank", "parked")
                    assert len(self.group(worker)) == 1 or self.model[worker] == name, "a group is torn apart"
                    self.leader[worker], self.obeyed[worker] = leader, kv_limit
                    self.model[worker], self.closed[worker] = name, False
                    self.copied.discard(worker)
                self.change(leader, "activating")
            case Drain(worker):
                assert self.leader[worker] == worker
                assert self.phase[worker] == "active"
                assert not self.closed[worker]
                self.closed[worker] = True
            case Resume(worker):
                assert self.phase[worker] == "active"
                assert self.closed[worker]
                self.closed[worker] = False
            case Park(worker):
                assert self.phase[worker] == "active"
                assert not self.running[worker], "parked under its requests"
                active = [self.model[number] for number in self.workers_that("active")]
                name = self.model[worker]
                kept = name not in self.pinned or active.count(name) > 1 or worker in self.isolated
                assert kept, "a pinned model is parked"
                self.change(worker, "parking")
            case Blank(worker):
                assert self.phase[worker] == "parked"
                self.change(worker, "blanking")
            case SetKvLimit(worker, _, nbytes):
                assert self.phase[worker] == "active"
                self.told[worker] = action
                if nbytes >= self.obeyed[worker]:
                    self.obeyed[worker] = nbytes
            case Recycle(worker, _, isolated):
                back = worker in self.isolated
                assert not (back and isolated)
                assert isolated or back or self.phase[worker] == "blank" or worker in self.broken
                assert not isolated or self.phase[worker] in ("starting", "blank", "parked", "active")
                assert not self.running[worker]
                self.isolated.discard(worker)
                if isolated:
                    self.isolated.add(worker)
                self.broken.discard(worker)
                self.vanish(worker)
            case Stage(name):
                assert self.staging is None, "two loads at a time"
                assert name not in self.staged
                self.staging = name
                assert sum(self.weights[m] for m in self.staged | {name}) <= 10 * GIB, "more than host memory"
            case Unstage(name):
                mapped = {m for m, p in zip(self.model, self.phase, strict=True) if p not in ("parked", "blanking")}
                assert name not in mapped, "weights dropped under a worker"
                self.staged.remove(name)
            case Answer(command, _, text):
                self.commands.remove(command)
                assert text

    def convict(self, request: int) -> None:
        body = self.body[request]
        if body and request in self.tried_alone:
            self.convicted[body] = self.now + MEMORY

    def end(self, request: int) -> None:
        """A request has had its last answer."""
        self.over[request] += 1
        self.streaming.discard(request)
        for running in self.running:
            running.discard(request)

    def group(self, leader: int) -> set[int]:
        return {number for number, other in enumerate(self.leader) if other == leader}

    def change(self, leader: int, phase: str) -> None:
        """All that act as one do it."""
        assert self.leader[leader] == leader
        for worker in self.group(leader):
            self.phase[worker] = phase

    def disband(self, leader: int) -> None:
        for worker in self.group(leader):
            self.leader[worker], self.model[worker], self.obeyed[worker] = worker, None, 0

    def vanish(self, worker: int) -> None:
        """Its process is gone, and another one starts."""
        self.told.pop(worker, None)
        self.obeyed[worker] = 0
        self.phase[worker], self.model[worker], self.closed[worker] = "starting", None, False

    def workers_that(self, *phases: str) -> list[int]:
        """Leaders, and those who are by themselves."""
        phase_of = enumerate(self.phase)
        return [number for number, phase in phase_of if phase in phases and self.leader[number] == number]

    def progress(self, worker: int) -> None:
        """A worker gets done with what it was told."""
        name = self.model[worker] or ""
        match self.phase[worker]:
            case "starting" | "blanking" as before:
                for member in self.group(worker):
                    self.rebuilds[member] = 0 if before == "starting" else self.rebuilds[member] + 1
                self.change(worker, "blank")
                self.disband(worker)
                self.tell(WorkerBlank(worker, self.held(worker)))
            case "activating":
                self.change(worker, "active")
                self.tell(Activated(worker, name, 0.2, self.held(worker)))
            case "parking":
                self.change(worker, "parked")
                for member in self.group(worker):
                    self.obeyed[member] = 0
                    self.told.pop(member, None)
                self.tell(Parked(worker, name, self.held(worker)))

    def load(self, nbytes: int) -> None:
        """The load under way is complete."""
        name, self.staging = self.staging or "", None
        self.staged.add(name)
        self.weights[name] = nbytes
        self.tell(Staged(name, nbytes))

    def answer_limit(self, worker: int, *, applied: bool = True) -> None:
        """A worker keeps to its new KV limit, or gives up."""
        told = self.told.pop(worker)
        if applied:
            self.obeyed[worker] = told.nbytes
        mapped = self.obeyed[worker]
        self.tell(LimitApplied(worker, told.revision, mapped, applied))

    def run_out(self, number: int) -> None:
        """A request gets its whole answer."""
        self.end(number)
        self.tell(Finished(number, 3))

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def all_running(self) -> list[int]:
        return sorted(number for running in self.running for number in running)

    # what happens to it

    @rule(name=st.sampled_from(NAMES), within=st.sampled_from([0.5, 5.0, 60.0]), count=st.integers(1, 4), body=BODIES)
    def requests_arrive(self, name: str, within: float, count: int, body: str = "") -> None:
        """`body` is what they ask; nobody knows of an empty one."""
        for _ in range(count):
            number = self.number()
            self.waiting[number], self.body[number] = name, body and f"{body} of {name}"
            if self.body[number] in self.scheduler.state.known:
                self.suspects[number] = ANYWHERE
            self.tell(Arrived(number, name, 10, self.now + within, self.body[number]))

    @rule(data=st.data())
    def worker_is_done(self, data: st.DataObject) -> None:
        busy = self.workers_that("starting", "activating", "parking", "blanking")
        assume(busy)
        self.progress(data.draw(st.sampled_from(busy)))

    @precondition(lambda self: self.workers_that("activating"))
    @rule(data=st.data())
    def weights_are_copied(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers_that("activating")))
        self.copied |= self.group(worker)
        self.tell(Copied(worker))

    @precondition(lambda self: self.workers_that("activating", "active"))
    @rule(data=st.data(), begins=st.booleans())
    def a_model_is_rehearsed(self, data: st.DataObject, begins: bool) -> None:
        self.tell(Rehearsing(data.draw(st.sampled_from(self.workers_that("activating", "active"))), begins))

    @rule()
    def all_workers_are_done(self) -> None:
        for worker in self.workers_that("starting", "activating", "parking", "blanking"):
            self.progress(worker)

    @rule()
    def all_is_done_but_the_limits(self) -> None:
        if self.staging is not None:
            self.load(self.weights[self.staging])
        self.all_workers_are_done()

    @precondition(lambda self: self.waiting or any(self.running))
    @rule(data=st.data(), tokens=st.sampled_from([1, 10, 5_000]))
    def request_is_counted(self, data: st.DataObject, tokens: int) -> None:
        """Its prompt has more or fewer tokens than was thought."""
        number = data.draw(st.sampled_from(sorted(self.waiting) + self.all_running()))
        self.tell(Counted(number, tokens))

    @precondition(lambda self: any(self.running))
    @rule(data=st.data())
    def request_streams(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.all_running()))
        self.streaming.add(number)
        self.tell(FirstToken(number))

    @precondition(lambda self: any(self.running))
    @rule(data=st.data())
    def request_finishes(self, data: st.DataObject) -> None:
        self.run_out(data.draw(st.sampled_from(self.all_running())))

    @precondition(lambda self: self.waiting or any(self.running))
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.waiting) + self.all_running()))
        self.waiting.pop(number, None)
        self.suspects.pop(number, None)
        self.end(number)
        self.tell(Aborted(number))

    @rule(data=st.data())
    def worker_dies(self, data: st.DataObject) -> None:
        self.die(data.draw(st.integers(0, self.workers - 1)))

    def die(self, worker: int) -> None:
        apart = worker in self.isolated
        lost = self.lose(worker)
        alone = [number for number in lost if apart or self.shards[self.waiting[number]] == 1]
        self.suspects |= dict.fromkeys(alone, self.device[worker])
        self.tell(WorkerDead(worker, "was killed"))
        self.forget_who_is_trusted()
        assert not self.broken, "left behind by another of their group"

    def lose(self, worker: int) -> list[int]:
        """A process is gone. Returns its requests that had no byte, which wait again."""
        name, leader = self.model[worker], self.leader[worker]
        lost = sorted(self.running[leader] - self.streaming)
        if worker in self.isolated and len(self.running[leader]) == 1:
            self.tried_alone |= self.running[leader]
        for number in lost:
            self.waiting[number] = name or ""
        self.running[leader].clear()
        self.broken |= self.group(leader) - {worker}
        for member in self.group(leader):
            self.leader[member] = member
        self.vanish(worker)
        return lost

    @precondition(lambda self: self.isolated)
    @rule(data=st.data(), at_work=st.booleans(), dies=st.booleans())
    def an_isolated_worker_goes_on(self, data: st.DataObject, at_work: bool, dies: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.isolated)))
        changing = ("starting", "activating", "parking")
        while at_work and worker in self.isolated and self.phase[worker] in changing:
            self.progress(worker)
        if dies:
            self.die(worker)

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=2, max_size=6))
    def all_are_at_work(self, names: list[str]) -> None:
        for name in names:
            self.requests_arrive(name, 60.0, 1)
        for _ in range(6):
            self.all_is_done_but_the_limits()

    @rule(data=st.data(), suspected=st.sampled_from([True, True, False]))
    def a_device_fails(self, data: st.DataObject, suspected: bool) -> None:
        """With all of its workers but the isolated ones."""
        busy = {self.device[worker] for worker, running in enumerate(self.running) if running - self.streaming}
        device = data.draw(st.sampled_from(sorted(busy or set(self.device))))
        clients = [n for n in range(self.workers) if self.device[n] == device and n not in self.isolated]
        assume(clients)
        for worker in clients:
            for number in self.lose(worker):
                if suspected and self.shards[self.waiting[number]] == 1:
                    self.suspects[number] = device
        self.tell(DeviceFault(device, tuple(clients), "failed", suspected))
        assert not self.broken, "left behind by another of their group"
        self.forget_who_is_trusted()

    def forget_who_is_trusted(self) -> None:
        """Not all can be served apart: then they are served as anybody is. Who asks the same as a suspect and waits
        becomes one.
        """
        state = self.scheduler.state
        isolated = {number for number, request in state.requests.items() if request.isolated}
        same = {number for number in isolated & set(self.waiting) if self.body[number] in state.known}
        self.suspects = dict.fromkeys(same, ANYWHERE) | {n: it for n, it in self.suspects.items() if n in isolated}

    @precondition(lambda self: "activating" in self.phase)
    @rule(data=st.data())
    def activation_fails(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers_that("activating")))
        name = self.model[worker] or ""
        self.change(worker, "blank")
        self.disband(worker)
        self.tell(ActivationFailed(worker, name, "a file is missing", self.held(worker)))

    @precondition(lambda self: self.told)
    @rule(data=st.data(), applied=st.sampled_from([True, True, True, False]))
    def limit_is_answered(self, data: st.DataObject, applied: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.told)))
        self.answer_limit(worker, applied=applied or self.told[worker].nbytes >= self.obeyed[worker])

    @precondition(lambda self: self.staging is not None)
    @rule(more=st.sampled_from([0, 0, 0, 0, 1, 5]))
    def load_ends(self, more: int) -> None:
        self.load(self.weights[self.staging or ""] + more * GIB)

    @precondition(lambda self: self.staging is not None)
    @rule()
    def load_fails(self) -> None:
        name, self.staging = self.staging or "", None
        self.tell(StageFailed(name, "a file is missing"))

    @rule(name=st.sampled_from(NAMES), worker=st.one_of(st.none(), st.integers(-1, 6)))
    def operator_activates(self, name: str, worker: int | None) -> None:
        number = self.number()
        self.commands.add(number)
        self.tell(OperatorActivate(number, name, worker))

    @rule(name=st.sampled_from(NAMES), now=st.booleans())
    def operator_evicts(self, name: str, now: bool) -> None:
        number = self.number()
        self.commands.add(number)
        self.tell(OperatorEvict(number, name, now))

    @precondition(lambda self: self.commands)
    @rule(data=st.data())
    def operator_leaves(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.commands)))
        self.commands.remove(number)
        self.tell(OperatorGone(number))

    @rule(number=st.integers(0, 60), worker=st.integers(0, 0))
    def stale_news_comes(self, number: int, worker: int) -> None:
        """Of requests and commands that are over or never were."""
        if number not in self.waiting and number not in self.all_running():
            self.tell(Finished(number, 1))
            self.tell(FirstToken(number))
            self.tell(Aborted(number))
        if number not in self.commands:
            self.tell(OperatorGone(number))
        self.tell(LimitApplied(worker, 0, 5))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.5, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick())

    # what must hold

    @invariant()
    def nothing_is_lost_or_answered_twice(self) -> None:
        if not hasattr(self, "over"):
            return
        assert set(self.waiting) | set(self.all_running()) == set(self.scheduler.state.requests)
        assert not set(self.waiting) & set(self.all_running())
        assert all(times == 1 for times in self.over.values())
        assert not self.over.keys() & self.scheduler.state.requests.keys()

    @invariant()
    def no_device_is_overcommitted(self) -> None:
        if not hasattr(self, "over") or self.memory is None or self.leak:
            return
        taken = Counter[str]()
        for worker, device in enumerate(self.device):
            loaded = self.phase[worker] in ("activating", "active", "parking")
            name = self.model[worker] or ""
            weights = -(-self.weights.get(name, 0) // self.shards[name]) if loaded else 0
            taken[device] += self.held(worker) + weights + self.obeyed[worker]
        assert max(taken.values()) <= self.memory

    @invariant()
    def copies_share_no_link(self) -> None:
        if hasattr(self, "over") and self.copies is not None:
            waits = set(range(self.workers)) - self.isolated
            activating = (n for n, phase in enumerate(self.phase) if phase == "activating" and n in waits)
            copying = Counter(self.device[n] for n in activating if n not in self.copied)
            assert max(copying.values(), default=0) <= self.copies

    def teardown(self) -> None:
        """Without further faults everybody gets an answer, and the pool comes to rest."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(SETTLING_ROUNDS):
            for worker in self.workers_that("starting", "activating", "parking", "blanking"):
                self.progress(worker)
            for worker in sorted(self.told):
                if worker in self.told:
                    self.answer_limit(worker)
            if self.staging is not None:
                self.load(self.weights[self.staging])
            for number in self.all_running():
                if any(number in running for running in self.running):
                    self.run_out(number)
            self.now += 1.0
            self.tell(Tick())
            if self.at_rest():
                break
        self.nothing_is_lost_or_answered_twice()
        assert not self.waiting, f"requests still wait: {self.waiting}"
        assert not any(self.running)
        assert not self.commands, f"commands without an answer: {self.commands}"
        assert self.at_rest(), f"no rest: {self.phase}, {self.model}, staging {self.staging}"

    def at_rest(self) -> bool:
        """Nothing waits, runs or is under way, and only pinned models keep a worker."""
        busy = self.waiting or any(self.running) or self.commands or self.staging is not None or self.told
        changing = self.workers_that("starting", "activating", "parking", "blanking")
        serving = {self.model[worker] for worker in self.workers_that("active")}
        return not busy and not changing and (serving <= self.pinned or not self.parks_idle)


QUANTUM, DRAIN_AFTER, LONGEST, HIGHEST = 2.0, 1.0, 3.0, 3
PATIENCE = len(NAMES) * (QUANTUM + DRAIN_AFTER + LONGEST) + HIGHEST
"""Seconds: every other model may have its quantum, its longest answer and its head start before one's own turn."""


@settings(max_examples=EXAMPLES // 8)
@given(
    workers=st.integers(1, 3),
    priorities=st.lists(st.integers(0, HIGHEST), min_size=4, max_size=4),
    kept=st.sampled_from([{}, {"preload": True}, {"pinned": True}]),
    weights=st.one_of(st.just({}), st.fixed_dictionaries({name: st.integers(1, 8) for name in NAMES})),
    seed=st.integers(0, 1000),
)
def test_among_busy_models_nobody_starves_and_nobody_is_swapped_out_before_the_quantum(
    workers: int, priorities: list[int], kept: dict[str, bool], weights: dict[str, int], seed: int
) -> None:
    models = [
        model(name, priority=priority, **(kept if name == "a" else {}))
        for name, priority in zip(NAMES, priorities, strict=True)
    ]
    bench = Bench(models, workers=workers, weights=weights, quantum=QUANTUM, drain_after=DRAIN_AFTER)
    lengths = Random(seed)
    pending: dict[str, list[int]] = {name: [] for name in NAMES}
    ends: dict[int, float] = {}
    served = dict.fromkeys(NAMES, bench.now)
    came: dict[int, float] = {}
    for _ in range(400):
        bench.clear()
        bench.now += 0.25
        for requests in pending.values():
            over = [number for number in requests if ends.get(number, bench.now + 1) <= bench.now]
            requests[:] = [number for number in requests if number not in over]
        for name, requests in pending.items():
            requests += [bench.ask(name) for _ in range(4 - len(requests))]
        for number in [number for number, end in ends.items() if end <= bench.now]:
            del ends[number]
            bench.finish(number)
        bench.wait(0)
        bench.settle()
        refused = bench.refused()
        for name, requests in pending.items():
            if refused.keys() & set(requests):
                served[name] = bench.now
            requests[:] = [number for number in requests if number not in refused]
            started = [number for number in requests if bench.on(number) is not None and number not in ends]
            ends |= {number: bench.now + lengths.uniform(0.1, LONGEST) for number in started}
            if started:
                served[name] = bench.now
            assert bench.now - served[name] <= PATIENCE, f"{name} starves"
        for action in bench.said:
            match action:
                case Activate(worker):
                    came[worker] = bench.now
                case Drain(worker):
                    assert bench.now - came[worker] >= QUANTUM, "swapped out right after it came in"


TestPool = Pool.TestCase
TestPool.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=40,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
