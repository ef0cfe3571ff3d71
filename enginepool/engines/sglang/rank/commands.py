"""Executes the front's commands: between two steps while the rank serves a model, at once while it is blank.

Commands to a serving rank arrive through SGLang's own request channel, so the Scheduler itself calls the handlers, when
no step is in progress. Answers go back on the front's private connection. A new command needs a class in `protocol` and
a handler here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from config.errors import EngineError, StoreError
from enginepool.engines.phases import Phases
from enginepool.engines.sglang.faults import is_device_fault
from enginepool.engines.sglang.prefix_cache import evictable
from enginepool.engines.sglang.protocol import (
    CommandDone,
    CommandFailed,
    Filled,
    FillWeights,
    LimitKv,
    OfferSegment,
    PauseWeights,
    RankLoad,
    WithdrawSegment,
)
from enginepool.engines.sglang.rank.device import KvCache, RankDevice
from enginepool.engines.sglang.rank.stalled_queue import StalledQueue
from enginepool.engines.sglang.tokenizers import RANK, preload_tokenizers

if TYPE_CHECKING:  # it imports SGLang
    from enginepool.engines.sglang.rank.stored import StoredWeights

CAPTURE_AFTER = 0.5
"""Seconds of idleness before the rank captures CUDA graphs, because requests that arrive meanwhile have to wait."""
SIGNS_OF_LIFE = 30
"""Minimum number of reports within the front's patience."""
REPORT_INTERVAL = 0.5
"""Seconds between checks for a changed load, which is then reported."""


@dataclass(slots=True)
class Serving:
    """A model being served in the rank; handlers work on it."""

    scheduler: Any
    weights: StoredWeights
    device: RankDevice
    kv: KvCache
    connection: Connection
    patience: float
    """The front's patience in seconds."""
    paused: bool = False
    stalled_queue: StalledQueue = field(init=False)
    _unreserved: int = field(init=False)
    """Bytes in use besides weights, KV cache and torch's allocator; constant while the model is served."""
    batches: list[int] = field(default_factory=list)
    """Batch sizes of the decode steps since the last report."""
    reported: RankLoad | None = None
    reported_at: float = 0.0
    looked_at: float = 0.0
    busy_at: float = field(default_factory=time.monotonic)
    """When the rank was last busy."""

    def __post_init__(self) -> None:
        self.stalled_queue = StalledQueue(self.scheduler)
        # Measured once, because querying the driver takes too long to repeat between steps.
        held = max(0, self.device.used() - self.weights.flat.nbytes - self.kv.mapped)
        self._unreserved = held - self.device.reserved()

    def held(self) -> int:
        """Bytes of device memory in use besides weights and mapped KV cache."""
        return self._unreserved + self.device.reserved()

    def between_steps(self, asked: bool) -> None:
        """Called between two steps; `asked` says whether requests or commands have just arrived."""
        if (limit := self.kv.step()) is not None:
            self.connection.send(limit)
        self.stalled_queue.look()
        now = time.monotonic()
        decoding = not self.scheduler.running_batch.is_empty()
        if decoding:
            self.batches.append(len(self.scheduler.running_batch.reqs))
        if decoding or asked:
            self.busy_at = now
            self.device.note_activity()
        if now - self.looked_at < REPORT_INTERVAL:
            return
        self.looked_at = now
        if (load := self._load()) != self.reported or now - self.reported_at >= self.patience / SIGNS_OF_LIFE:
            self.reported, self.reported_at = load, now
            self.connection.send(load)

    def capture_next_graph(self) -> bool:
        """Use idle time to capture a CUDA graph; returns False if there is nothing to do."""
        if self.paused or time.monotonic() - self.busy_at < CAPTURE_AFTER:
            return False
        return self.device.capture_next_graph(self.scheduler)

    def _load(self) -> RankLoad:
        batch = sum(self.batches) / len(self.batches) if self.batches else 0.0
        self.batches.clear()
        cached = int(evictable(self.scheduler.tree_cache) * self.kv.bytes_per_token)
        return RankLoad(self.kv.mapped, max(0, self.kv.allocated - cached), batch, self.held())


Handler = Callable[[Serving, Any], object]
"""Executes a command and returns the result for its CommandDone. May raise EngineError and StoreError."""


def install(serving: Serving) -> None:
    """Hook the commands, and the work between steps, into the Scheduler."""
    from sglang.utils import TypeBasedDispatcher

    known = [(kind, partial(_carry_out, handler, serving)) for kind, handler in _HANDLERS.items()]
    scheduler = serving.scheduler
    scheduler._request_dispatcher += TypeBasedDispatcher(known)
    take_requests = scheduler.process_input_requests

    def take_requests_between_steps(requests: Any) -> None:
        take_requests(requests)
        serving.between_steps(bool(requests))

    scheduler.process_input_requests = take_requests_between_steps
    serving.device.install(scheduler)
    sleep = scheduler.maybe_sleep_on_idle

    def capture_or_sleep() -> None:
        if scheduler.gracefully_exit or not serving.capture_next_graph():
            sleep()

    scheduler.maybe_sleep_on_idle = capture_or_sleep


def carry_out_blank(command: OfferSegment | WithdrawSegment, connection: Connection, device: RankDevice) -> None:
    """Execute a command in a rank without a model."""
    _answer(connection, partial(_offer_or_withdraw, device, command))


def _carry_out(handler: Handler, serving: Serving, command: object) -> None:
    _answer(serving.connection, partial(handler, serving, command))


def _answer(connection: Connection, carry_out: Callable[[], object]) -> None:
    try:
        result = carry_out()
    except (EngineError, StoreError) as error:
        if is_device_fault(error):
            raise
        connection.send(CommandFailed(error))
    else:
        connection.send(CommandDone(result))


def _fill_weights(serving: Serving, command: FillWeights) -> Filled:
    phases = Phases()
    if serving.paused:
        serving.device.resume()
        serving.kv.resume()
        serving.paused = False
    phases.end("resume")
    serving.weights.fill(command.weights)
    seconds = serving.device.wait_nearly_copied()
    phases.end("copy")
    return Filled(phases.seconds, seconds)


def _pause_weights(serving: Serving, command: PauseWeights) -> int:
    """Park the model; returns the bytes of device memory that it still holds."""
    if not serving.scheduler.is_fully_idle():
        raise EngineError("the rank is not idle")
    serving.kv.pause()
    serving.device.pause()
    serving.paused = True
    return serving.device.used()


def _limit_kv(serving: Serving, command: LimitKv) -> None:
    limit = serving.kv.set_limit(command.revision, command.nbytes)
    if limit is not None:
        serving.connection.send(limit)


def _offer(serving: Serving, command: OfferSegment | WithdrawSegment) -> None:
    _offer_or_withdraw(serving.device, command)


def _offer_or_withdraw(device: RankDevice, command: OfferSegment | WithdrawSegment) -> None:
    if isinstance(command, OfferSegment):
        device.offer(command.model.name, command.segment)
        threading.Thread(target=preload_tokenizers, args=(command.model.path, RANK), daemon=True).start()
    else:
        device.withdraw(command.model)


_HANDLERS: dict[type, Handler] = {
    FillWeights: _fill_weights,
    PauseWeights: _pause_weights,
    LimitKv: _limit_kv,
    OfferSegment: _offer,
    WithdrawSegment: _offer,
}
