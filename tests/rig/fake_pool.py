"""What the scheduler's tests share: short registries, and a pool that does what it is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from config.registry import (
    GatewayConfig,
    Limits,
    ModelConfig,
    PolicyName,
    PoolConfig,
    Registry,
    SchedulerConfig,
    Slo,
    WeightStoreConfig,
)
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
from scheduler.driver import Driver
from scheduler.events import (
    Activated,
    AnyEvent,
    Arrived,
    Finished,
    LimitApplied,
    OperatorActivate,
    OperatorEvict,
    Parked,
    Staged,
    Tick,
    WorkerBlank,
    WorkerDead,
)
from scheduler.learned.profile import Profile
from scheduler.scheduler import Scheduler

A = TypeVar("A", bound=AnyAction)
GIB = 2**30


def model(name: str, *, slo: Slo | None = None, **fields: Any) -> ModelConfig:
    return ModelConfig(name=name, slo=slo or Slo(), **fields)


def registry(
    models: Iterable[ModelConfig | str],
    *,
    workers: int = 1,
    devices: tuple[str, ...] = ("cpu",),
    max_running: int = 2,
    queue: int = 100,
    blank_reserve: int = 0,
    copies: int | None = None,
    host_memory: int = 10,
    linger: float = 0.0,
    policy: PolicyName = "lru",
    **scheduler: Any,
) -> Registry:
    return Registry(
        gateway=GatewayConfig(limits=Limits(queue_per_model=queue)),
        pool=PoolConfig(
            devices=devices,
            workers_per_device=workers,
            max_running=max_running,
            blank_reserve=blank_reserve,
            activations_per_device=copies,
        ),
        weight_store=WeightStoreConfig(host_memory=host_memory),
        scheduler=SchedulerConfig(linger=linger, policy=policy, **scheduler),
        models=tuple(model(m) if isinstance(m, str) else m for m in models),
    )


def only(kind: type[A], actions: Iterable[AnyAction]) -> list[A]:
    return [action for action in actions if isinstance(action, kind)]


class Bench:
    """A scheduler, a clock and an obedient pool: what the scheduler decides is done when `settle` is called.

    `said` has every action since the last `clear`, `pending` what is still to be carried out. With `memory` (bytes of
    each device) a worker holds 1 GiB of it, and 2 GiB with a model, active or parked. Of workers that act as one the
    leader answers for all. `kv` has the bytes of a token's KV cache by model.
    """

    def __init__(
        self,
        models: Iterable[ModelConfig | str],
        *,
        weights: Mapping[str, int] | None = None,
        memory: int | None = None,
        kv: Mapping[str, int] | None = None,
        profile: Profile | None = None,
        start: bool = True,
        **fields: Any,
    ) -> None:
        made = registry(models, **fields)
        capacities = {} if memory is None else dict.fromkeys(made.pool.devices, memory)
        self.scheduler = Scheduler(
            made, weights or {}, capacities=capacities, kv_bytes=kv, profile=profile, validate=True
        )
        self.weights = dict(weights or {})
        self.held = {"blank": 0, "active": 0, "parked": 0}
        if memory is not None:
            self.held = {"blank": GIB, "active": 2 * GIB, "parked": 2 * GIB}
        self.now = 1000.0
        self.said: list[AnyAction] = []
        self.pending: list[AnyAction] = []
        self._driver = Driver(self.scheduler.handle, self._note)
        self._numbers = itertools.count(1)
        if start:
            for worker in self.scheduler.state.workers:
                self.tell(WorkerBlank(worker.number, self.held["blank"]))
            self.settle()

    def tell(self, event: AnyEvent) -> list[AnyAction]:
        """Hand one event to the scheduler; returns its actions, which `settle` will carry out."""
        before = len(self.said)
        self._driver.feed(event, self.now)
        return self.said[before:]

    def _note(self, action: AnyAction) -> None:
        self.said.append(action)
        self.pending.append(action)

    def settle(self, *, but: type[AnyAction] | None = None) -> None:
        """Carry out what was decided, and what follows from that, until the pool is at rest; one kind may be left."""
        while todo := [action for action in self.pending if but is None or not isinstance(action, but)]:
            self.pending.remove(todo[0])
            answer = self._carry_out(todo[0])
            if answer is not None:
                self.tell(answer)

    def _carry_out(self, action: AnyAction) -> AnyEvent | None:
        match action:
            case Activate():
                return Activated(action.worker, action.model, 0.1, self.held["active"])
            case Park():
                model = self.scheduler.state.workers[action.worker].model or ""
                return Parked(action.worker, model, self.held["parked"])
            case Blank() | Recycle():
                return WorkerBlank(action.worker, self.held["blank"])
            case SetKvLimit():
                mapped = min(self.scheduler.state.workers[action.worker].kv_mapped, action.nbytes)
                return LimitApplied(action.worker, action.revision, mapped)
            case Stage():
                return Staged(action.model, self.weights[action.model])
            case _:
                return None

    def take(self, kind: type[A]) -> A:
        """Take the oldest action of a kind from what is to be carried out: the test says what became of it."""
        action = next(action for action in self.pending if isinstance(action, kind))
        self.pending.remove(action)
        return action

    def wait(self, seconds: float) -> list[AnyAction]:
        """Time passes, then a tick."""
        self.now += seconds
        return self.tell(Tick())

    def ask(self, model: str, *, within: float = 10.0, prompt: int = 10, body: str = "") -> int:
        """A request of so many tokens arrives; returns its number."""
        number = next(self._numbers)
        self.tell(Arrived(number, model, prompt, self.now + within, body))
        return number

    def serve(self, model: str, *, prompt: int = 10, body: str = "") -> int:
        """A request arrives and what it takes to run it is done."""
        number = self.ask(model, prompt=prompt, body=body)
        self.settle()
        assert self.on(number) is not None, f"{model} is not served"
        return number

    def finish(self, *requests: int, tokens: int = 5) -> None:
        for number in requests:
            self.tell(Finished(number, tokens))

    def die(self, worker: int) -> list[AnyAction]:
        self.pending = [action for action in self.pending if getattr(action, "worker", None) != worker]
        return self.tell(WorkerDead(worker, "was killed"))

    def activate(self, model: str, worker: int | None = None) -> int:
        number = next(self._numbers)
        self.tell(OperatorActivate(number, model, worker))
        return number

    def evict(self, model: str, *, now: bool = False) -> int:
        number = next(self._numbers)
        self.tell(OperatorEvict(number, model, now))
        return number

    # what is to be seen

    def clear(self) -> None:
        self.said.clear()

    def decisions(self) -> list[AnyAction]:
        kinds = (Activate, Drain, Resume, Park, Blank, Recycle, Stage, Unstage)
        return [action for action in self.said if isinstance(action, kinds)]

    def on(self, request: int) -> int | None:
        """The worker on which a request runs; None when it waits or is over."""
        known = self.scheduler.state.requests.get(request)
        return None if known is None else known.worker

    def answers(self) -> dict[int, bool]:
        """Commands answered, and whether they succeeded."""
        given = only(Answer, self.said)
        assert len({answer.command for answer in given}) == len(given), "a command was answered twice"
        return {answer.command: answer.ok for answer in given}

    def waits(self, request: int) -> bool:
        known = self.scheduler.state.requests.get(request)
        return known is not None and known.worker is None

    def dispatched(self) -> list[int]:
        return [action.request for action in only(Dispatch, self.said)]

    def refused(self) -> dict[int, Refuse]:
        return {action.request: action for action in only(Refuse, self.said)}

    def aborted(self) -> list[int]:
        return [action.request for action in only(Abort, self.said)]

    def active(self) -> dict[int, str]:
        """Workers that serve, and what."""
        return {w.number: w.model or "" for w in self.scheduler.state.workers if w.phase == "active"}

    def kv_limits(self) -> dict[int, int]:
        """KV limits of the workers that serve, in GiB."""
        state = self.scheduler.state
        return {number: state.account(state.workers[number]).limit // GIB for number in self.active()}

    def phases(self) -> list[str]:
        return [worker.phase.value for worker in self.scheduler.state.workers]

    def staged(self) -> set[str]:
        return {m.name for m in self.scheduler.state.models.values() if m.staged}
