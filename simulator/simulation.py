"""Runs a trace in virtual time: the gateway's scheduler makes the decisions; workers, engines and links are modelled.

Before the trace begins, pinned models are activated and preloaded ones brought into host memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from functools import partial
from typing import assert_never

from config.registry import Registry
from scheduler import actions, events
from scheduler.driver import Driver
from scheduler.scheduler import Scheduler
from simulator.calibration import Calibration
from simulator.costs import Costs
from simulator.engine import VirtualEngine, VirtualRequest
from simulator.outcomes import MemorySample, SimulatedAnswer, SimulationResult
from simulator.profile import profile_of
from simulator.sharing import Contention, sharing_of
from simulator.traces.trace import Trace, TraceRequest
from simulator.workers import IDLE, VirtualWorker

TICK = 0.1
"""Seconds between ticks, as in the gateway."""
STATS_INTERVAL = 1.0
"""Seconds between a worker's reports."""
PATIENCE = 600.0
"""Seconds to wait for the pool to become ready before the trace, and for unfinished requests after it."""


class Simulation:
    """One simulation.

    `costs` has an entry per model; `capacity` is the number of bytes of each device that the scheduler manages. The
    registry's SLOs are the deadlines. `mps` says whether workers share a GPU through MPS, `warmed` whether every
    process has served every model before. `validate` checks the scheduler's invariants after every event.
    `memory_every` is the number of seconds between memory samples, at least 1; None takes none.
    """

    def __init__(
        self,
        registry: Registry,
        costs: Mapping[str, Costs],
        calibration: Calibration,
        *,
        capacity: int,
        mps: bool = False,
        warmed: bool = False,
        validate: bool = False,
        memory_every: float | None = None,
        progress: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        pool = registry.pool
        weights = {name: cost.weight_bytes for name, cost in costs.items()}
        capacities = dict.fromkeys(pool.devices, capacity)
        kv_bytes = {name: cost.kv_bytes for name, cost in costs.items()}
        profile = profile_of(costs, calibration, mps=mps)
        self.scheduler = Scheduler(
            registry, weights, capacities=capacities, kv_bytes=kv_bytes, profile=profile, validate=validate
        )
        self._ttft = {model.name: model.slo.ttft for model in registry.models}
        self._costs = costs
        self._calibration = calibration
        self._capacity = capacity
        self._sharing = sharing_of(calibration, mps=mps)
        self._warmed = warmed
        self._max_running = pool.max_running
        self._memory_every = memory_every
        self._memory: list[MemorySample] = []
        self._progress = progress
        self._workers = [VirtualWorker(worker.number, worker.device) for worker in self.scheduler.state.workers]
        self._neighbours = {
            device: [worker for worker in self._workers if worker.device == device] for device in pool.devices
        }
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._changes = 0
        """Activations, loads, KV limits and the like that are under way."""
        self._answers: list[SimulatedAnswer] = []
        self._open = 0
        self._preparing = True
        self._began = 0.0
        self._activations = 0
        self._migrations = 0
        self._driver = Driver(self.scheduler.handle, self._carry_out)

    def run(self, trace: Trace) -> SimulationResult:
        """Simulate the whole trace; may be called once."""
        self._prepare()
        self._began = self.now
        requests = iter(trace)
        upcoming = next(requests, None)
        end = self._began + trace.duration
        while upcoming is not None or self._open:
            due = self._heap[0][0]
            if upcoming is not None and self._began + upcoming.at <= due:
                self.now = self._began + upcoming.at
                self._arrive(upcoming)
                upcoming = next(requests, None)
            elif due > end + PATIENCE:
                break
            else:
                self._step()
        for answer in self._answers:
            answer.ended = answer.ended or "unfinished"
        return SimulationResult(self._answers, trace.duration, self._activations, self._migrations, self._memory)

    # time

    def _prepare(self) -> None:
        """Start all workers as blank, then run until nothing is in progress."""
        for worker in self._workers:
            self._feed(events.WorkerBlank(worker.number, self._calibration.held.blank_bytes))
        self._at(TICK, self._tick)
        self._at(STATS_INTERVAL, self._report)
        while self._changes and self.now < PATIENCE:
            self._step()
        self._activations = self._migrations = 0
        self._preparing = False

    def _step(self) -> None:
        self.now, _, happen = heapq.heappop(self._heap)
        happen()

    def _at(self, when: float, happen: Callable[[], None]) -> int:
        """Schedule `happen` for `when`, but not before now; returns the event's number."""
        self._numbers += 1
        heapq.heappush(self._heap, (max(when, self.now), self._numbers, happen))
        return self._numbers

    def _change(self, seconds: float, happen: Callable[[], None]) -> None:
        """Schedule the completion of something that the scheduler ordered, `seconds` from now."""
        self._changes += 1
        self._at(self.now + seconds, partial(self._changed, happen))

    def _changed(self, happen: Callable[[], None]) -> None:
        self._changes -= 1
        happen()

    def _tick(self) -> None:
        self._at(self.now + TICK, self._tick)
        self._feed(events.Tick())

    def _report(self) -> None:
        self._at(self.now + STATS_INTERVAL, self._report)
        self._progress(self.now - self._began)
        for worker in self._workers:
            if (engine := worker.engine) and worker.leader is worker:
                load = (engine.running, engine.waiting, engine.mapped(self.now))
                self._feed(events.Stats(worker.number, *load, *worker.served(self.now)))
        if self._memory_every is not None and not self._preparing:
            self._sample(self._memory_every)

    def _sample(self, every: float) -> None:
        at = self.now - self._began
        if at < len(self._memory) * every:
            return
        held: dict[str, int] = {}
        for worker in self._workers:
            if worker.engine is not None and (model := worker.skeleton) is not None:
                nbytes = self._costs[model].shard_bytes + worker.engine.mapped(self.now)
                held[model] = held.get(model, 0) + nbytes
        self._memory.append(MemorySample(at, held))

    # the scheduler

    def _feed(self, event: events.AnyEvent) -> None:
        self._driver.feed(event, self.now)

    def _carry_out(self, action: actions.AnyAction) -> None:
        match action:
            case actions.Dispatch():
                self._dispatch(action)
            case actions.Refuse():
                self._refuse(action)
            case actions.Abort():
                self._abort(action)
            case actions.Activate():
                self._activate(action)
            case actions.Park():
                self._park(action)
            case actions.Blank():
                self._blank(action)
            case actions.Recycle():
                self._recycle(action)
            case actions.SetKvLimit():
                self._set_kv_limit(action)
            case actions.Stage():
                self._stage(action)
            case actions.Drain() | actions.Resume() | actions.Unstage() | actions.Answer():
                pass  # the scheduler has noted it, and nothing that is modelled here changes
            case _:
                assert_never(action)

    # requests

    def _arrive(self, request: TraceRequest) -> None:
        number = len(self._answers)
        self._answers.append(SimulatedAnswer(request))
        self._open += 1
        deadline = self.now + self._ttft[request.model]
        self._feed(events.Arrived(number, request.model, request.prompt_tokens, deadline))

    def _end(self, request: int, how: str) -> None:
        answer = self._answers[request]
        assert not answer.ended, f"request {request} ends twice: {answer.ended}, {how}"
        answer.ended = how
        self._open -= 1

    def _dispatch(self, action: actions.Dispatch) -> None:
        worker, asked = self._workers[action.worker], self._answers[action.request].asked
        assert worker.engine is not None
        self._feed(events.Counted(action.request, asked.prompt_tokens))
        if asked.prompt_tokens + asked.output_tokens > self._most_tokens(asked.model):
            self._end(action.request, "larger than any KV cache")
            self._feed(events.Finished(action.request, 0))
            return
        deadline = self.scheduler.state.requests[action.request].deadline
        job = VirtualRequest(action.request, deadline, asked.prompt_tokens, asked.output_tokens)
        arrives = self.now + self._costs[asked.model].front(asked.prompt_tokens)
        self._at(arrives, partial(self._submit, worker, worker.engine, job))

    def _submit(self, worker: VirtualWorker, engine: VirtualEngine, job: VirtualRequest) -> None:
        """Deliver a request to its engine; if the engine is gone by now, the request is lost with it."""
        if worker.engine is engine and not self._answers[job.id].ended:
            engine.submit(job)
            self._interrupt(worker)

    def _most_tokens(self, model: str) -> int:
        """Tokens of KV cache that fit on the model's devices when it is alone there."""
        costs = self._costs[model]
        return costs.tokens_in(self._capacity - costs.shard_bytes - costs.held)

    def _refuse(self, action: actions.Refuse) -> None:
        self._end(action.request, f"refused: {action.kind}")

    def _abort(self, action: actions.Abort) -> None:
        self._end(action.request, "aborted")
        for worker in self._workers:
            if worker.engine is not None and worker.engine.abort(action.request):
                self._interrupt(worker.leader)

    # engines

    def _interrupt(self, worker: VirtualWorker) -> None:
        """Something changed for an engine: cut its run short, so that the change counts from the next step on."""
        assert worker.engine is not None
        end = worker.engine.cut(self.now)
        if end is None:
            self._begin(worker, before=IDLE)
        else:
            worker.run_event = self._at(end, partial(self._run_ended, worker, self._numbers + 1))

    def _begin(self, worker: VirtualWorker, *, before: str) -> None:
        """Begin an engine's next run. `before` is what it was doing, which determined the speed of its neighbours."""
        assert worker.engine is not None
        end = worker.engine.begin(self.now, self._contention(worker))
        if end is not None:
            worker.run_event = self._at(end, partial(self._run_ended, worker, self._numbers + 1))
        if before != worker.doing:
            for member in worker.group:
                for other in self._neighbours[member.device]:
                    if other is not member and other.busy:
                        self._interrupt(other.leader)

    def _contention(self, worker: VirtualWorker) -> Contention:
        devices, resident = [], False
        for member in worker.group:
            others = [it.engine for it in self._neighbours[member.device] if it is not member and it.engine is not None]
            devices.append([other.load for other in others if other.run is not None and other.load is not None])
            resident = resident or bool(others)
        return Contention(self._sharing, devices, resident)

    def _run_ended(self, worker: VirtualWorker, number: int) -> None:
        if number != worker.run_event or worker.engine is None:
            return
        doing = worker.doing
        outcome = worker.engine.complete()
        self._begin(worker, before=doing)
        at = self.now - self._began
        for request in outcome.first_tokens:
            self._answers[request].first_token_at = at
            self._feed(events.FirstToken(request))
        for request in outcome.finished:
            answer = self._answers[request]
            answer.finished_at = at
            self._end(request, "finished")
            self._feed(events.Finished(request, answer.asked.output_tokens))

    def _set_kv_limit(self, action: actions.SetKvLimit) -> None:
        worker = self._workers[action.worker]
        if worker.engine is None:
            return
        worker.kv_limit = action.nbytes
        worker.engine.set_limit(min(member.kv_limit for member in worker.leader.group))
        end = worker.engine.cut(self.now)
        self._interrupt(worker.leader)
        happen = partial(self._limit_applied, worker, worker.engine, action.revision)
        wait = 0.0 if end is None else end - self.now
        self._change(wait + self._calibration.limit.seconds, happen)

    def _limit_applied(self, worker: VirtualWorker, engine: VirtualEngine, revision: int) -> None:
        if worker.engine is engine:
            self._feed(events.LimitApplied(worker.number, revision, engine.mapped(self.now)))

    # workers

    def _activate(self, action: actions.Activate) -> None:
        worker, costs = self._workers[action.worker], self._costs[action.model]
        worker.join(tuple(self._workers[number] for number in action.followers))
        seconds = costs.parked_activation if worker.skeleton == action.model else costs.blank_activation
        copied = costs.parked_activation  # activating a parked model is little more than the copy
        if any(member.skeleton not in (None, action.model) for member in worker.group):
            seconds += self._calibration.teardown.seconds
            copied += self._calibration.teardown.seconds
        for member in worker.group:
            member.skeleton = action.model
        if copied < seconds:
            self._at(self.now + copied, partial(self._feed, events.Copied(worker.number)))
        self._activations += 1
        self._migrations += any(it.engine is not None and it.skeleton == action.model for it in self._workers)
        self._change(seconds, partial(self._activated, worker, action, seconds))

    def _activated(self, worker: VirtualWorker, action: actions.Activate, seconds: float) -> None:
        costs = self._costs[action.model]
        first_use = not self._warmed and action.model not in worker.used
        worker.put_engine(
            VirtualEngine(costs, self._max_running, action.kv_limit, first_use=first_use), action.kv_limit
        )
        self._feed(events.Activated(worker.number, action.model, seconds, costs.held))

    def _park(self, action: actions.Park) -> None:
        worker = self._workers[action.worker]
        assert worker.skeleton is not None
        worker.drop_engine(self.now)
        self._change(self._costs[worker.skeleton].park, partial(self._parked, worker, worker.skeleton))

    def _parked(self, worker: VirtualWorker, model: str) -> None:
        self._feed(events.Parked(worker.number, model, self._costs[model].held_parked))

    def _blank(self, action: actions.Blank) -> None:
        self._change(self._calibration.teardown.seconds, partial(self._blanked, self._workers[action.worker]))

    def _recycle(self, action: actions.Recycle) -> None:
        worker = self._workers[action.worker]
        worker.prefilled = worker.decoded = 0
        worker.used.clear()
        self._change(self._calibration.start.seconds, partial(self._blanked, worker))

    def _blanked(self, worker: VirtualWorker) -> None:
        for member in worker.group:
            member.skeleton = None
        worker.part()
        self._feed(events.WorkerBlank(worker.number, self._calibration.held.blank_bytes))

    def _stage(self, action: actions.Stage) -> None:
        """Load a model from disk; before the trace begins, this takes no time."""
        costs = self._costs[action.model]
        self._change(
            0.0 if self._preparing else costs.load, partial(self._feed, events.Staged(action.model, costs.weight_bytes))
        )
