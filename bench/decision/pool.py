"""A pool of many GPUs in virtual time, for `bench.decision`: executes the scheduler's actions and times every event.

It starts full: models are placed from the most to the least popular on the GPU with most room, one worker per GPU stays
blank, and models that do not fit have no worker. A request for one of those means that another has to be evicted.
"""

from __future__ import annotations

import gc
import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

from bench.evaluation.sizes import SIZES
from config.registry import ModelConfig, PolicyName, PoolConfig, Registry, SchedulerConfig, WeightStoreConfig
from config.shape import shape_of
from scheduler.actions import Activate, AnyAction, Blank, Decision, Dispatch, Park, Recycle, SetKvLimit, Stage
from scheduler.events import (
    Activated,
    AnyEvent,
    Arrived,
    Counted,
    Finished,
    FirstToken,
    LimitApplied,
    Parked,
    Staged,
    Stats,
    Tick,
    WorkerBlank,
)
from scheduler.policies import policy_of
from scheduler.policies.policy import Policy
from scheduler.scheduler import Scheduler
from scheduler.state.entities import Request, Worker
from scheduler.state.state import State
from simulator.calibration import read_calibration
from simulator.costs import Costs
from simulator.profile import profile_of

MIX = {("llama-8b", 1): 8, ("qwen3-14b", 1): 7, ("qwen3-32b", 1): 4, ("llama-70b", 4): 1}
"""Mix of twenty models by size and number of GPUs."""
CAPACITY = 73 * 2**30
"""Bytes of each GPU managed by the scheduler."""
RATE_PER_GPU = 1.0
"""Requests per second and GPU; models are chosen by Zipf's law."""
WARM_UP = 30.0
"""Seconds of requests to active models first, so that demand is known and all are busy."""
SETTLING = 5.0
"""Seconds of all requests before timing, because a policy's first plans fill memory that is still idle."""
TICK, STATS = 0.1, 1.0
"""Seconds between ticks, and between reports."""

Timed = Callable[[str, float, bool], None]
"""Called for each event with its kind, its seconds, and whether the policy decided anything."""


class Told:
    """Wraps the policy being measured. Until it is `awake`, it returns given decisions instead."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.elastic, self.by_admission = policy.elastic, policy.by_admission
        self.awake = False
        self.told: list[Decision] = []
        self.decided = 0

    def prepare(self, state: State) -> None:
        self._policy.prepare(state)

    def route(self, state: State, workers: Sequence[Worker], request: Request, now: float) -> Worker:
        return self._policy.route(state, workers, request, now)

    def plan(self, state: State, now: float) -> Iterator[Decision]:
        if not self.awake:
            told, self.told = self.told, []
            yield from told
            return
        for decision in self._policy.plan(state, now):
            self.decided += 1
            yield decision


class CrowdedPool:
    def __init__(
        self, policy: PolicyName, *, models: int, gpus: int, workers_per_gpu: int, validate: bool = False
    ) -> None:
        self._random = Random(1)
        self._exclusive = policy in ("swap", "serverless")
        self._calibration = read_calibration()
        self._costs = dict(zip((f"model-{rank}" for rank in range(models)), self._drawn_sizes(models), strict=True))
        registry = self._registry(policy, gpus, workers_per_gpu)
        self._policy = Told(policy_of(registry))
        self.scheduler = Scheduler(
            registry,
            {name: costs.weight_bytes for name, (costs, _) in self._costs.items()},
            self._policy,
            capacities=dict.fromkeys(registry.pool.devices, CAPACITY),
            kv_bytes={name: costs.kv_bytes for name, (costs, _) in self._costs.items()},
            profile=profile_of({name: costs for name, (costs, _) in self._costs.items()}, self._calibration),
            validate=validate,
        )
        self._names = list(self._costs)
        self._wishes = [1 / (1 + rank) for rank in range(models)]
        self._rate = RATE_PER_GPU * gpus
        self._requests = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = 0
        self._now = 0.0
        self._timed: Timed | None = None
        self.handled = 0

    def run(self, events: int, timed: Timed) -> None:
        """Fill the pool, warm it up and let the policy settle, then time `events` events."""
        self._fill()
        self._at(0.0, self._arrive)
        self._run_for(WARM_UP)
        gc.freeze()
        self._policy.awake = True
        for worker in self.scheduler.state.workers:
            self._at(self._random.uniform(0, STATS), partial(self._report, worker))
        self._at(TICK, self._tick)
        self._run_for(SETTLING)
        self._timed, self.handled = timed, 0
        self._run_until(lambda: self.handled >= events)

    def _drawn_sizes(self, models: int) -> list[tuple[Costs, int]]:
        shapes = {size: shape_of(dict(config)) for size, config in SIZES.items()}
        made = {
            (size, gpus): (Costs(self._calibration, shapes[size], shapes[size].weight_bytes, gpus), gpus)
            for size, gpus in MIX
        }
        sizes = [made[kind] for kind, number in MIX.items() for _ in range(number)]
        drawn = (sizes * (models // len(sizes) + 1))[:models]
        self._random.shuffle(drawn)
        return drawn

    def _registry(self, policy: PolicyName, gpus: int, workers_per_gpu: int) -> Registry:
        devices = tuple(f"cuda:{index}" for index in range(gpus))
        models = (ModelConfig(name=name, preload=True, tensor_parallel=k) for name, (_, k) in self._costs.items())
        return Registry(
            pool=PoolConfig(engine="sglang", devices=devices, workers_per_device=workers_per_gpu, max_running=64),
            weight_store=WeightStoreConfig(host_memory=2**50),
            scheduler=SchedulerConfig(policy=policy),
            models=tuple(models),
        )

    # the beginning

    def _fill(self) -> None:
        for name in self._costs:
            self._tell([Stage(name, "at the start")])
        for worker in self.scheduler.state.workers:
            self._feed(WorkerBlank(worker.number, self._calibration.held.blank_bytes))
        self._tell(list(self._placement()))

    def _tell(self, decisions: list[Decision]) -> None:
        self._policy.told = decisions
        self._feed(Tick())
        self._run_until(lambda: not self._heap)

    def _placement(self) -> Iterator[Activate]:
        """The initial placement: one worker per device stays blank, or all but one if a model has the device alone."""
        state, held = self.scheduler.state, self._calibration.held.blank_bytes
        last = 2 if self._exclusive else None
        free = {name: [w.number for w in state.on(device)][1:last] for name, device in state.devices.items()}
        room = {name: CAPACITY - held * (len(workers) + 1) for name, workers in free.items()}
        roomiest = [(-left, name) for name, left in room.items()]
        heapq.heapify(roomiest)
        for name, (costs, gpus) in self._costs.items():
            model = state.models[name]
            taken = [heapq.heappop(roomiest) for _ in range(min(gpus, len(roomiest)))]
            need = costs.shard_bytes + costs.held + 2 * 2**30
            if len(taken) == gpus and all(-left >= need and model.may_be_on(state.devices[d]) for left, d in taken):
                workers = [free[device].pop() for _, device in taken]
                yield Activate(workers[0], name, "at the start", followers=tuple(workers[1:]))
                taken = [(left + need, device) for left, device in taken]
            for entry in taken:
                if free[entry[1]]:
                    heapq.heappush(roomiest, entry)

    # time

    def _at(self, seconds: float, happen: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._heap, (self._now + seconds, self._numbers, happen))

    def _run_for(self, seconds: float) -> None:
        end = self._now + seconds
        self._run_until(lambda: self._now >= end)

    def _run_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._now, _, happen = heapq.heappop(self._heap)
            happen()

    def _feed(self, event: AnyEvent, kind: str = "") -> None:
        decided, began = self._policy.decided, time.process_time()
        actions = self.scheduler.handle(event, self._now)
        seconds = time.process_time() - began
        self.handled += 1
        if self._timed is not None:
            self._timed(kind or type(event).__name__, seconds, self._policy.decided > decided)
        for action in actions:
            self._carry_out(action)

    def _after(self, seconds: float, event: AnyEvent) -> None:
        self._at(seconds, partial(self._feed, event))

    # what happens by itself

    def _tick(self) -> None:
        self._at(TICK, self._tick)
        self._feed(Tick())

    def _report(self, worker: Worker) -> None:
        self._at(STATS, partial(self._report, worker))
        if worker.leads and worker.model is not None:
            decoded = worker.decoded + 50 * len(worker.running)
            self._feed(Stats(worker.number, len(worker.running), 0, worker.replica.kv_promised, 0, decoded))

    def _arrive(self) -> None:
        self._at(self._random.expovariate(self._rate), self._arrive)
        (name,) = self._random.choices(self._names, self._wishes)
        served = bool(self.scheduler.state.models[name].workers)
        if served or self._policy.awake:
            self._requests += 1
            event = Arrived(self._requests, name, self._random.randint(50, 2000), self._now + 1.0)
            self._feed(event, "Arrived, served" if served else "Arrived, not served")

    # what the scheduler says

    def _carry_out(self, action: AnyAction) -> None:
        match action:
            case Dispatch():
                self._serve(action.request)
            case Activate():
                costs = self._costs[action.model][0]
                seconds = costs.blank_activation
                self._after(seconds, Activated(action.worker, action.model, seconds, costs.held))
            case Park():
                model = self.scheduler.state.workers[action.worker].model or ""
                costs = self._costs[model][0]
                self._after(costs.park, Parked(action.worker, model, costs.held))
            case Blank() | Recycle():
                wait = self._calibration.teardown.seconds
                self._after(wait, WorkerBlank(action.worker, self._calibration.held.blank_bytes))
            case SetKvLimit():
                mapped = min(self.scheduler.state.workers[action.worker].kv_mapped, action.nbytes)
                self._after(self._calibration.limit.seconds, LimitApplied(action.worker, action.revision, mapped))
            case Stage():
                self._after(0.0, Staged(action.model, self._costs[action.model][0].weight_bytes))
            case _:
                pass

    def _serve(self, request: int) -> None:
        self._feed(Counted(request, self.scheduler.state.requests[request].prompt_tokens))
        tokens = self._random.randint(20, 400)
        first = self._random.uniform(0.05, 0.3)
        self._after(first, FirstToken(request))
        self._after(first + 0.02 * tokens, Finished(request, tokens))
