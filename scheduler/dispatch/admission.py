"""Local admission: per device one queue over its models, so that as many requests as possible meet their deadlines.

A device prefills for all of its models. How far ahead it is booked is known from what was sent and what a prefill
costs; more is sent only while that is less than `ahead` seconds, so that an engine's own queue stays short and the
order that is decided here is the one that happens. Moore-Hodgson decides who goes next (`moore_hodgson`): the earliest
deadline among those that can still be met; what cannot be goes behind them, and first of all once it has waited for
`PATIENCE` beyond. A worker takes requests as long as their KV cache, as expected, fits under its limit. A model on
several devices queues on its leader's and is booked on all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

from scheduler.dispatch.by_deadline import ByDeadline
from scheduler.dispatch.moore_hodgson import AdmissionQueue
from scheduler.policies.policy import Policy
from scheduler.state.deadline_queue import DeadlineQueue
from scheduler.state.entities import Device, Model, Request, Worker
from scheduler.state.state import State

PATIENCE = 30.0
"""Seconds after its deadline from which a request goes before all others."""
RETURNING = 8
"""Requests that come back into the queue at a time when their worker has room again."""


class _Booking:
    """One device's queue, and how far ahead it is booked."""

    def __init__(self) -> None:
        self.queue = AdmissionQueue(PATIENCE)
        self.full: dict[str, DeadlineQueue] = {}
        """Requests of models whose workers here have no room; they compete with nobody."""
        self.free_at = 0.0
        """When what was sent will have been prefilled."""
        self.under_way = 0
        """Requests that were sent and have no token yet."""


class Admission(ByDeadline):
    """`ahead` in seconds, as above."""

    def __init__(self, state: State, policy: Policy, max_running: int, ahead: float) -> None:
        super().__init__(state, policy, max_running)
        self._ahead = ahead
        self._bookings = {name: _Booking() for name in state.devices}

    # changes

    def waits(self, request: Request) -> None:
        for device in self._devices(self._state.models[request.model]):
            self._add(device, request)

    def leaves(self, request: Request) -> None:
        for device in request.queued_on:
            booking = self._bookings[device]
            if request.id in booking.queue:
                booking.queue.remove(request.id)
            elif request.model in booking.full:
                booking.full[request.model].remove(request.id)
        request.queued_on.clear()

    def opens(self, worker: Worker) -> None:
        model, device = self._state.model_of(worker), self._state.device_of(worker)
        for number in sorted(model.queue):
            request = self._state.requests[number]
            if device.name not in request.queued_on:
                self._add(device, request)

    def closes(self, worker: Worker) -> None:
        model = self._state.model_of(worker)
        if any(other.device == worker.device for other in self.serving(model) if other is not worker):
            return
        booking = self._bookings[worker.device]
        booking.full.pop(model.name, None)
        for number in sorted(model.queue):
            request = self._state.requests[number]
            if worker.device in request.queued_on:
                request.queued_on.remove(worker.device)
                if number in booking.queue:
                    booking.queue.remove(number)

    def starts(self, request: Request, worker: Worker, now: float) -> None:
        seconds = self._seconds(request, worker)
        for booking in self._booked_with(worker):
            booking.free_at = max(booking.free_at, now) + seconds
            booking.under_way += 1

    def answers(self, request: Request, now: float) -> None:
        if request.worker is None:
            return
        for booking in self._booked_with(self._state.workers[request.worker]):
            booking.under_way -= 1
            # Estimates add up to errors. Where nothing is being prefilled, the device is free whatever was booked.
            if booking.under_way == 0:
                booking.free_at = min(booking.free_at, now)

    def frees(self, worker: Worker) -> None:
        booking = self._bookings[worker.device]
        full = booking.full.get(worker.model or "")
        if full is None:
            return
        # One place is free, and each that returns costs an insertion: a few are enough to fill it and what follows.
        for _ in range(min(RETURNING, len(full))):
            self._enqueue(booking, self._state.requests[full.pop()], worker)
        if not full:
            del booking.full[worker.model or ""]

    # who goes next

    def next(self, model: Model, now: float) -> tuple[Request, Worker] | None:
        for device in self._devices(model):
            found = self._next_on(device, now)
            if found is not None:
                return found
        return None

    def _next_on(self, device: Device, now: float) -> tuple[Request, Worker] | None:
        booking = self._bookings[device.name]
        # A model whose workers are full would block the queue as long as it has the earliest deadline, and its requests
        # would count in the plan as if they could run: they leave it until one of its workers has room.
        while len(booking.queue) and booking.free_at - now < self._ahead:
            number = booking.queue.first(max(now, booking.free_at))
            assert number is not None
            request = self._state.requests[number]
            able = list(self._able(request, now))
            if able:
                return request, able[0] if len(able) == 1 else self._policy.route(self._state, able, request, now)
            self._set_aside(booking, request.model)
        return None

    def _able(self, request: Request, now: float) -> Iterator[Worker]:
        """Workers that may have the request now."""
        for worker in self.serving(self._state.models[request.model]):
            booked = self._bookings[worker.device].free_at - now
            if booked < self._ahead and len(worker.running) < self._max_running and self._kv_fits(request, worker):
                yield worker

    def _set_aside(self, booking: _Booking, model: str) -> None:
        """A model's workers have no room: its requests wait outside, until one has."""
        aside = booking.full.setdefault(model, DeadlineQueue())
        for number in sorted(self._state.models[model].queue):
            if number in booking.queue:
                booking.queue.remove(number)
                aside.push(number, self._state.requests[number].deadline)

    # what a request takes

    def _add(self, device: Device, request: Request) -> None:
        request.queued_on.add(device.name)
        booking = self._bookings[device.name]
        if request.model in booking.full:
            booking.full[request.model].push(request.id, request.deadline)
            return
        worker = next(w for w in self.serving(self._state.models[request.model]) if w.device == device.name)
        self._enqueue(booking, request, worker)

    def _enqueue(self, booking: _Booking, request: Request, worker: Worker) -> None:
        priority = self._state.models[request.model].priority
        booking.queue.add(request.id, request.deadline, self._seconds(request, worker), priority)

    def _seconds(self, request: Request, worker: Worker) -> float:
        """How long the device prefills for it, beside those that are busy there now."""
        device = self._state.device_of(worker)
        busy = sum(bool(other.running) for other in self._state.on(device) if other is not worker)
        alone = self._state.models[request.model].demand.prefill.at(request.prompt_tokens)
        return alone * (1.0 + self._state.estimates.slowdown * busy)

    def _booked_with(self, worker: Worker) -> list[_Booking]:
        """Of all devices that prefill for it."""
        return [self._bookings[member.device] for member in worker.replica.workers]

    def _kv_fits(self, request: Request, worker: Worker) -> bool:
        """One that runs alone may always: nobody makes more room for it by waiting."""
        limit = self._state.kv_limit(worker.replica)
        if limit == 0 or not worker.running:
            return True
        return worker.replica.kv_promised + self._state.models[request.model].kv_need(request) <= limit

    def _devices(self, model: Model) -> list[Device]:
        names = dict.fromkeys(worker.device for worker in self.serving(model))
        return [self._state.devices[name] for name in names]
