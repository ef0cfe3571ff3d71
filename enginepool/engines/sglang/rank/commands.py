"""What the rank does when the front tells it to: between two steps while it serves a model, and at once while blank.

A command to a serving rank comes in by SGLang's own way for requests, so the Scheduler itself calls its handler, with
no step under way. The answer goes back on the front's private connection. A new command needs its class in
`protocol` and its handler here.
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
from enginepool.engines.sglang.rank.faults import is_device_fault
from enginepool.engines.sglang.rank.prefix_cache import evictable
from enginepool.engines.sglang.rank.stalled_queue import StalledQueue
from enginepool.engines.sglang.tokenizers import RANK, preload_tokenizers

if TYPE_CHECKING:  # it imports SGLang
    from enginepool.engines.sglang.rank.stored import StoredWeights

CAPTURE_AFTER = 0.5
"""Seconds for which a rank has had nothing to do before it improves itself: whoever comes meanwhile has to wait."""
SIGNS_OF_LIFE = 30
"""Within the front's patience, at least."""
REPORT_INTERVAL = 0.5
"""Seconds between two looks at what the rank does; a change is reported."""


@dataclass(slots=True)
class Serving:
    """A model in the rank: what handlers work on."""

    scheduler: Any
    weights: StoredWeights
    device: RankDevice
    kv: KvCache
    connection: Connection
    patience: float
    """The front's, in seconds."""
    paused: bool = False
    stalled_queue: StalledQueue = field(init=False)
    _unreserved: int = field(init=False)
    """Bytes held less those reserved, which are all that changes."""
    batches: list[int] = field(default_factory=list)
    """Sizes of those that decoded since the last report."""
    reported: RankLoad | None = None
    reported_at: float = 0.0
    looked_at: float = 0.0
    busy_at: float = field(default_factory=time.monotonic)
    """When it last had anything to do."""

    def __post_init__(self) -> None:
        self.stalled_queue = StalledQueue(self.scheduler)
        # Asking the driver takes too long for doing it again between steps.
        held = max(0, self.device.used() - self.weights.flat.nbytes - self.kv.mapped)
        self._unreserved = held - self.device.reserved()

    def held(self) -> int:
        """Bytes of the device's memory besides the weights and what the KV cache has mapped."""
        return self._unreserved + self.device.reserved()

    def between_steps(self, asked: bool) -> None:
        """With `asked` if requests or commands have just come in."""
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
        """To be called while the rank is idle. False: it has nothing to do now."""
        if self.paused or time.monotonic() - self.busy_at < CAPTURE_AFTER:
            return False
        return self.device.capture_next_graph(self.scheduler)

    def _load(self) -> RankLoad:
        batch = sum(self.batches) / len(self.batches) if self.batches else 0.0
        self.batches.clear()
        cached = int(evictable(self.scheduler.tree_cache) * self.kv.bytes_per_token)
        return RankLoad(self.kv.mapped, max(0, self.kv.allocated - cached), batch, self.held())


Handler = Callable[[Serving, Any], object]
"""Carries a command out and returns what its CommandDone says. May raise EngineError and StoreError."""


def install(serving: Serving) -> None:
    """Have the Scheduler know the commands, and do what is to be done between its steps."""
    from sglang.utils import TypeBasedDispatcher

    known = [(kind, partial(_carry_out, handler, serving)) for kind, handler in _HANDLERS.items()]
    scheduler = serving.scheduler
    scheduler._request_dispatcher += TypeBasedDispatcher(known)
    take_requests = scheduler.process_input_requests

    def take_requests_and_look_around(requests: Any) -> None:
        take_requests(requests)
        serving.between_steps(bool(requests))

    scheduler.process_input_requests = take_requests_and_look_around
    serving.device.install(scheduler)
    sleep = scheduler.maybe_sleep_on_idle

    def capture_or_sleep() -> None:
        if scheduler.gracefully_exit or not serving.capture_next_graph():
            sleep()

    scheduler.maybe_sleep_on_idle = capture_or_sleep


def carry_out_blank(command: OfferSegment | WithdrawSegment, connection: Connection, device: RankDevice) -> None:
    """What a rank without a model can do."""
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
    """Returns what the parked model holds, all kinds together."""
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
