"""What the rank does when the front tells it to: between two steps while it serves a model, and at once while blank.

A command to a serving rank comes in by SGLang's own way for requests, so the Scheduler itself calls its handler, with
no step under way. The answer goes back on the front's private connection. A new command needs its class in
`rank_protocol` and its handler here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from config.errors import EngineError, StoreError
from enginepool.engines.sglang.device import Device, KvCache
from enginepool.engines.sglang.rank_protocol import (
    CommandDone,
    CommandFailed,
    FillWeights,
    KvMapped,
    LimitKv,
    Offer,
    PauseWeights,
    Withdraw,
)
from enginepool.engines.sglang.tokenizers import RANK, read_ahead

if TYPE_CHECKING:  # it imports SGLang
    from enginepool.engines.sglang.stored import StoredWeights

REPORT_INTERVAL = 0.5
"""Seconds between two looks at what the KV cache holds; a change is reported."""


@dataclass(slots=True)
class Serving:
    """A model in the rank: what handlers work on."""

    scheduler: Any
    weights: StoredWeights
    device: Device
    kv: KvCache
    connection: Connection
    paused: bool = False
    reported: int = -1
    looked_at: float = 0.0

    def held(self) -> int:
        """Bytes of the device's memory besides the weights and what the KV cache has mapped."""
        weights = 0 if self.paused else self.weights.flat.nbytes
        return max(0, self.device.used() - weights - self.kv.mapped)

    def between_steps(self) -> None:
        if (limit := self.kv.step()) is not None:
            self.connection.send(limit)
        now = time.monotonic()
        if now - self.looked_at < REPORT_INTERVAL:
            return
        self.looked_at = now
        if (mapped := self.kv.mapped) != self.reported:
            self.reported = mapped
            self.connection.send(KvMapped(mapped))


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
        serving.between_steps()

    scheduler.process_input_requests = take_requests_and_look_around


def carry_out_blank(command: Offer | Withdraw, connection: Connection, device: Device) -> None:
    """What a rank without a model can do."""
    _answer(connection, partial(_offer_or_withdraw, device, command))


def _carry_out(handler: Handler, serving: Serving, command: object) -> None:
    _answer(serving.connection, partial(handler, serving, command))


def _answer(connection: Connection, carry_out: Callable[[], object]) -> None:
    try:
        result = carry_out()
    except (EngineError, StoreError) as error:
        connection.send(CommandFailed(error))
    else:
        connection.send(CommandDone(result))


def _fill_weights(serving: Serving, command: FillWeights) -> float:
    """Returns the seconds of the copy."""
    if serving.paused:
        serving.device.resume()
        serving.paused = False
    serving.weights.fill(command.weights)
    return serving.device.settle()


def _pause_weights(serving: Serving, command: PauseWeights) -> int:
    """Returns what the parked model holds, all kinds together."""
    if not serving.scheduler.is_fully_idle():
        raise EngineError("the rank is not idle")
    serving.kv.trim()
    serving.device.pause()
    serving.paused = True
    return serving.device.used()


def _limit_kv(serving: Serving, command: LimitKv) -> None:
    limit = serving.kv.set_limit(command.revision, command.nbytes)
    if limit is not None:
        serving.connection.send(limit)


def _offer(serving: Serving, command: Offer | Withdraw) -> None:
    _offer_or_withdraw(serving.device, command)


def _offer_or_withdraw(device: Device, command: Offer | Withdraw) -> None:
    if isinstance(command, Offer):
        device.offer(command.model.name, command.segment)
        threading.Thread(target=read_ahead, args=(command.model.path, RANK), daemon=True).start()
    else:
        device.withdraw(command.model)


_HANDLERS: dict[type, Handler] = {
    FillWeights: _fill_weights,
    PauseWeights: _pause_weights,
    LimitKv: _limit_kv,
    Offer: _offer,
    Withdraw: _offer,
}
