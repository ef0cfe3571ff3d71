"""What must hold after every event. Checked in all tests, and in the gateway when asked to."""

from __future__ import annotations

from scheduler.state.entities import Device, Isolation, Worker
from scheduler.state.phases import MAPPED, SERVING, TAKEN, Phase
from scheduler.state.state import State

LONGER_USED = SERVING | {Phase.PARKING, Phase.PARKED}
"""Phases of a model that has served."""
WITH_MODEL = MAPPED | {Phase.PARKED, Phase.BLANKING}


class InvariantBroken(AssertionError):
    """The scheduler's books do not agree with themselves."""


def check(state: State) -> None:
    """
    Raises:
        InvariantBroken: naming what does not agree.
    """
    _check_requests(state)
    _check_workers(state)
    _check_isolations(state)
    _check_models(state)
    _check_host(state)
    for device in state.devices.values():
        _check_device(state, device)
        _check_view(state, device)
    _check_notes(state)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise InvariantBroken(what)


def _leading(state: State) -> list[Worker]:
    """Those who count for themselves or for their group."""
    return [worker for worker in state.workers if worker.leader is None]


def _check_requests(state: State) -> None:
    """Every request is in exactly one place: its model's queue, or one worker, of the pool or isolated."""
    for request in state.requests.values():
        queued = request.id in state.models[request.model].queue
        running = [worker.number for worker in _leading(state) if request.id in worker.running]
        expected = [] if request.worker is None else [request.worker]
        _require(running == expected, f"request {request.id} runs on {running}, noted on {expected}")
        nowhere = request.worker is None and not request.isolated
        _require(queued == nowhere, f"request {request.id} is queued: {queued}, on {request.worker}")
    held = sum(len(model.queue) for model in state.models.values()) + sum(len(w.running) for w in _leading(state))
    held += len(state.apart) + sum(len(found.waiting) + len(found.running) for found in state.isolations.values())
    _require(held == len(state.requests), f"{held} requests are held, {len(state.requests)} are known")


def _check_workers(state: State) -> None:
    for worker in state.workers:
        where = f"worker {worker.number}, {worker.phase}"
        _require((worker.model is not None) == (worker.phase in WITH_MODEL), f"{where}, has model {worker.model}")
        pending = worker.pending is not None
        _require(pending == (worker.phase is Phase.PREPARING), f"{where}, has an activation pending: {pending}")
        _require(not worker.copying or worker.phase is Phase.ACTIVATING, f"{where}, copies weights")
        _require(not worker.evicting or worker.phase in MAPPED, f"{where}, has nothing to be evicted")
        _require(not worker.running or worker.phase in SERVING, f"{where}, runs {len(worker.running)} requests")
        for number in worker.running:
            _require(state.requests[number].model == worker.model, f"{where}, runs another model's request {number}")
        promised = sum(state.requests[number].kv_bytes for number in worker.running)
        _require(
            worker.kv_promised == promised, f"{where}, {worker.kv_promised} bytes promised to {promised} of requests"
        )
        _check_group(state, worker)


def _check_group(state: State, worker: Worker) -> None:
    """The workers that act as one lie on as many devices as the model needs, and agree in all that they do."""
    where = f"worker {worker.number}, {worker.phase}"
    leader, group = state.lead(worker), state.group(state.lead(worker))
    _require(worker in group and leader.leader is None, f"{where}, is not in the group of worker {leader.number}")
    agree = (worker.phase, worker.model, worker.running) == (leader.phase, leader.model, leader.running)
    _require(agree, f"{where}, does something else than its leader {leader.number}")
    together = leader.phase not in LONGER_USED or worker.last_used == leader.last_used
    _require(together, f"{where}, used at {worker.last_used}, its leader at {leader.last_used}")
    alone = worker.reserved_for is None and not worker.evicting and not worker.followers
    _require(worker is leader or alone, f"{where}, is wanted, and follows worker {leader.number}")
    devices = {member.device for member in group}
    _require(len(devices) == len(group), f"{where}, two of its group of {len(group)} share a device")
    if worker.phase in WITH_MODEL:
        wanted = state.model_of(worker).tensor_parallel
        _require(len(group) == wanted, f"{where}, serves with {len(group)} workers what needs {wanted}")
    else:
        _require(not worker.grouped, f"{where}, is in a group")


def _check_isolations(state: State) -> None:
    apart = {worker.number for worker in state.workers if worker.phase is Phase.ISOLATED}
    noted = {found.worker for found in state.isolations.values()}
    _require(apart == noted, f"{apart} are isolated, noted {noted}")
    _require(all(state.requests[number].isolated for number in state.apart), f"{state.apart} are said to wait apart")
    for device in state.devices.values():
        within = sum(worker.phase is Phase.ISOLATED for worker in state.on(device))
        _require(within <= max(1, len(state.on(device)) // 2), f"{device.name}: {within} workers are isolated")
    for found in state.isolations.values():
        where = f"isolated worker {found.worker}, {found.phase}"
        here = (*found.waiting, *found.running)
        _require(len(set(here)) == len(here), f"{where}, has a request twice: {here}")
        _require(all(state.requests[number].isolated for number in here), f"{where}, has requests of others: {here}")
        models = {state.requests[number].model for number in found.running}
        _require(models <= {found.model}, f"{where}, runs requests of {models} with {found.model}")
        _require(not found.running or found.phase is Phase.ACTIVE, f"{where}, runs {found.running}")
        _require(len(found.running) <= 1 or not found.running & found.alone, f"{where}, runs suspects beside others")
        account = state.account(state.workers[found.worker])
        _require(account.weights >= _most_weights(state, found), f"{where}, has no memory for its models: {account}")


def _most_weights(state: State, isolation: Isolation) -> int:
    """Bytes."""
    numbers = (*isolation.waiting, *isolation.running)
    return max((state.models[state.requests[number].model].shard_bytes for number in numbers), default=0)


def _check_models(state: State) -> None:
    for model in state.models.values():
        serving = {w.number for w in _leading(state) if w.model == model.name and w.phase in TAKEN}
        _require(model.workers == serving, f"{model.name} is served by {serving}, noted {model.workers}")
        wants = not serving and (bool(model.queue) or model.pinned or model.name in state.operator_wants)
        _require(wants == (model.name in state.wanting), f"{model.name} wants a worker: {wants}, noted otherwise")


def _check_host(state: State) -> None:
    used = state.host.used
    mapped = {worker.model for worker in state.workers if worker.phase in MAPPED} | state.isolated_models()
    absent = sorted(m.name for m in state.models.values() if m.name in mapped and not m.staged)
    _require(not absent or not state.host.required, f"workers map weights that are not in host memory: {absent}")
    _require(used <= state.host.capacity or not state.host.required, f"{used} bytes staged of {state.host.capacity}")


def _check_device(state: State, device: Device) -> None:
    ledger, here = device.ledger, state.on(device)
    promised = ledger.used - ledger.excess
    fits = ledger.capacity is None or promised <= ledger.capacity
    _require(fits, f"{device.name}: {promised} bytes promised of {ledger.capacity}")
    for worker in here:
        _check_account(state, device, worker)
    under_way = sum(worker.copying for worker in here)
    _require(device.copies is None or under_way <= device.copies, f"{device.name}: {under_way} copies under way")


def _check_view(state: State, device: Device) -> None:
    """What is noted of a device is what one sees there."""
    noted, seen = state.view(device), state.fresh_view(device)
    _require(noted == seen, f"{device.name}: noted {noted}, it is {seen}")
    ledger = device.ledger
    sums = (sum(account.total for account in ledger), sum(account.held + account.weights for account in ledger))
    _require((ledger.used, ledger.fixed) == sums, f"{device.name}: noted {ledger.used} and {ledger.fixed} of {sums}")


def _check_notes(state: State) -> None:
    """What is noted of all workers and models together is what one finds by looking at each."""
    for phase in Phase:
        within = {worker.number for worker in state.workers if worker.phase is phase}
        noted = state.numbers_in(phase)
        _require(noted == within, f"{within} are {phase}, noted {noted}")
    sums = (state.staged_bytes(), state.staged_bytes(kept=True))
    _require((state.host.used, state.host.kept) == sums, f"{sums} bytes are in host memory, noted {state.host}")
    pinned = sum(model.tensor_parallel for model in state.models.values() if model.pinned)
    _require(pinned == state.pinned_workers, f"{pinned} workers are pinned, noted {state.pinned_workers}")


def _check_account(state: State, device: Device, worker: Worker) -> None:
    account = state.account(worker)
    where = f"worker {worker.number}, {worker.phase}, {account}"
    _require(min(account.held, account.weights, account.limit) >= 0, f"{where}: less than nothing")
    _require(account.limit <= account.kv, f"{where}: a limit above what is counted")
    if device.accounted and worker.phase is not Phase.ISOLATED:
        granted = worker.phase in MAPPED and (worker.pending is None or worker.pending.granted)
        weights = state.model_of(worker).shard_bytes if granted else 0
        _require(account.weights == weights, f"{where}: {weights} bytes of weights are its own")
        _require(granted == (account.kv >= device.kv_minimum), f"{where}: KV cache without a model, or none with one")
