"""A trace in virtual time: the gateway's scheduler decides, workers, engines and links are modelled.

Before the trace begins, whatever the registry pins or preloads is brought to its place.
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
from simulator.engine import Engine, Job
from simulator.outcomes import Answer, MemorySample, Result
from simulator.places import IDLE, Place
from simulator.profile import profile_of
from simulator.sharing import Beside, sharing_of
from simulator.traces.trace import Request, Trace

TICK = 0.1
"""Seconds between two ticks, as in the gateway."""
STATS_INTERVAL = 1.0
"""Seconds between two reports of a worker."""
PATIENCE = 600.0
"""Seconds after the trace's end for which unfinished requests are waited for; before it, for the pool to be ready."""


class Simulation:
    """`capacity` is the bytes of each device that the scheduler shares out, `costs` has every model's.

    The registry's objectives are the deadlines. `mps` is whether the GPUs' workers are clients of MPS, `warmed` whether
    every process has served every model before. With `validate`, the scheduler's invariants are checked at every step.
    `memory_every` are the seconds between two samples of the memory, at least 1; None takes none.
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
        self._places = [Place(worker.number, worker.device) for worker in self.scheduler.state.workers]
        self._neighbours = {
            device: [place for place in self._places if place.device == device] for device in pool.devices
        }
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._changes = 0
        """Activations, loads, KV limits and the like that are under way."""
        self._answers: list[Answer] = []
        self._open = 0
        self._preparing = True
        self._began = 0.0
        self._activations = 0
        self._migrations = 0
        self._driver = Driver(self.scheduler.handle, self._carry_out)

    def run(self, trace: Trace) -> Result:
        """Simulate the whole trace; to be called once."""
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
        return Result(self._answers, trace.duration, self._activations, self._migrations, self._memory)

    # time

    def _prepare(self) -> None:
        """All workers are blank at the start; the trace may begin once nothing is under way."""
        for place in self._places:
            self._feed(events.WorkerBlank(place.worker, self._calibration.held.blank_bytes))
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
        """Note what is to happen, no earlier than now; returns its number."""
        self._numbers += 1
        heapq.heappush(self._heap, (max(when, self.now), self._numbers, happen))
        return self._numbers

    def _change(self, seconds: float, happen: Callable[[], None]) -> None:
        """Something that the scheduler has ordered takes so long."""
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
        for place in self._places:
            if (engine := place.engine) and place.leader is place:
                load = (engine.running, engine.waiting, engine.mapped(self.now))
                self._feed(events.Stats(place.worker, *load, *place.served(self.now)))
        if self._memory_every is not None and not self._preparing:
            self._sample(self._memory_every)

    def _sample(self, every: float) -> None:
        at = self.now - self._began
        if at < len(self._memory) * every:
            return
        held: dict[str, int] = {}
        for place in self._places:
            if place.engine is not None and (model := place.skeleton) is not None:
                nbytes = self._costs[model].shard_bytes + place.engine.mapped(self.now)
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

    def _arrive(self, request: Request) -> None:
        number = len(self._answers)
        self._answers.append(Answer(request))
        self._open += 1
        deadline = self.now + self._ttft[request.model]
        self._feed(events.Arrived(number, request.model, request.prompt_tokens, deadline))

    def _end(self, request: int, how: str) -> None:
        answer = self._answers[request]
        assert not answer.ended, f"request {request} ends twice: {answer.ended}, {how}"
        answer.ended = how
        self._open -= 1

    def _dispatch(self, action: actions.Dispatch) -> None:
        place, asked = self._places[action.worker], self._answers[action.request].asked
        assert place.engine is not None
        self._feed(events.Counted(action.request, asked.prompt_tokens))
        if asked.prompt_tokens + asked.output_tokens > self._most_tokens(asked.model):
            self._end(action.request, "larger than any KV cache")
            self._feed(events.Finished(action.request, 0))
            return
        deadline = self.scheduler.state.requests[action.request].deadline
        job = Job(action.request, deadline, asked.prompt_tokens, asked.output_tokens)
        arrives = self.now + self._costs[asked.model].front(asked.prompt_tokens)
        self._at(arrives, partial(self._submit, place, place.engine, job))

    def _submit(self, place: Place, engine: Engine, job: Job) -> None:
        """What was on its way to an engine that is gone by now is lost with what that had under way."""
        if place.engine is engine and not self._answers[job.id].ended:
            engine.submit(job)
            self._interrupt(place)

    def _most_tokens(self, model: str) -> int:
        """Tokens for which its devices have room beside the model alone."""
        costs = self._costs[model]
        return costs.tokens_in(self._capacity - costs.shard_bytes - costs.held)

    def _refuse(self, action: actions.Refuse) -> None:
        self._end(action.request, f"refused: {action.kind}")

    def _abort(self, action: actions.Abort) -> None:
        self._end(action.request, "aborted")
        for place in self._places:
            if place.engine is not None and place.engine.abort(action.request):
                self._interrupt(place.leader)

    # engines

    def _interrupt(self, place: Place) -> None:
        """Something has changed for an engine: from the end of its step on it counts."""
        assert place.engine is not None
        end = place.engine.cut(self.now)
        if end is None:
            self._begin(place, before=IDLE)
        else:
            place.planned = self._at(end, partial(self._run_ended, place, self._numbers + 1))

    def _begin(self, place: Place, *, before: str) -> None:
        """Begin an engine's next run. `before` is what it did: its neighbours' steps depend on that."""
        assert place.engine is not None
        end = place.engine.begin(self.now, self._beside(place))
        if end is not None:
            place.planned = self._at(end, partial(self._run_ended, place, self._numbers + 1))
        if before != place.doing:
            for member in place.group:
                for other in self._neighbours[member.device]:
                    if other is not member and other.busy:
                        self._interrupt(other.leader)

    def _beside(self, place: Place) -> Beside:
        devices, resident = [], False
        for member in place.group:
            others = [it.engine for it in self._neighbours[member.device] if it is not member and it.engine is not None]
            devices.append([other.load for other in others if other.run is not None and other.load is not None])
            resident = resident or bool(others)
        return Beside(self._sharing, devices, resident)

    def _run_ended(self, place: Place, number: int) -> None:
        if number != place.planned or place.engine is None:
            return
        doing = place.doing
        outcome = place.engine.complete()
        self._begin(place, before=doing)
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
        place = self._places[action.worker]
        if place.engine is None:
            return
        place.kv_limit = action.nbytes
        place.engine.set_limit(min(member.kv_limit for member in place.leader.group))
        end = place.engine.cut(self.now)
        self._interrupt(place.leader)
        happen = partial(self._limit_applied, place, place.engine, action.revision)
        wait = 0.0 if end is None else end - self.now
        self._change(wait + self._calibration.limit.seconds, happen)

    def _limit_applied(self, place: Place, engine: Engine, revision: int) -> None:
        if place.engine is engine:
            self._feed(events.LimitApplied(place.worker, revision, engine.mapped(self.now)))

    # workers

    def _activate(self, action: actions.Activate) -> None:
        place, costs = self._places[action.worker], self._costs[action.model]
        place.join(tuple(self._places[worker] for worker in action.followers))
        seconds = costs.parked_activation if place.skeleton == action.model else costs.blank_activation
        copied = costs.parked_activation  # it is little more than a copy
        if any(member.skeleton not in (None, action.model) for member in place.group):
            seconds += self._calibration.teardown.seconds
            copied += self._calibration.teardown.seconds
        for member in place.group:
            member.skeleton = action.model
        if copied < seconds:
            self._at(self.now + copied, partial(self._feed, events.Copied(place.worker)))
        self._activations += 1
        self._migrations += any(p.engine is not None and p.skeleton == action.model for p in self._places)
        self._change(seconds, partial(self._activated, place, action, seconds))

    def _activated(self, place: Place, action: actions.Activate, seconds: float) -> None:
        costs = self._costs[action.model]
        first_use = not self._warmed and action.model not in place.used
        place.put_engine(Engine(costs, self._max_running, action.kv_limit, first_use=first_use), action.kv_limit)
        self._feed(events.Activated(place.worker, action.model, seconds, costs.held))

    def _park(self, action: actions.Park) -> None:
        place = self._places[action.worker]
        assert place.skeleton is not None
        place.drop_engine(self.now)
        self._change(self._costs[place.skeleton].park, partial(self._parked, place, place.skeleton))

    def _parked(self, place: Place, model: str) -> None:
        self._feed(events.Parked(place.worker, model, self._costs[model].held_parked))

    def _blank(self, action: actions.Blank) -> None:
        self._change(self._calibration.teardown.seconds, partial(self._blanked, self._places[action.worker]))

    def _recycle(self, action: actions.Recycle) -> None:
        place = self._places[action.worker]
        place.prefilled = place.decoded = 0
        place.used.clear()
        self._change(self._calibration.start.seconds, partial(self._blanked, place))

    def _blanked(self, place: Place) -> None:
        for member in place.group:
            member.skeleton = None
        place.part()
        self._feed(events.WorkerBlank(place.worker, self._calibration.held.blank_bytes))

    def _stage(self, action: actions.Stage) -> None:
        """From disk; before the trace begins it does not matter how long that takes."""
        costs = self._costs[action.model]
        self._change(
            0.0 if self._preparing else costs.load, partial(self._feed, events.Staged(action.model, costs.weight_bytes))
        )
