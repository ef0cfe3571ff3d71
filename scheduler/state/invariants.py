"""What must hold after every event. Checked in all tests, and in the gateway when asked to."""

from __future__ import annotations

from scheduler.state.entities import Device, Isolation, Replica, Worker
from scheduler.state.phases import MAPPED, SERVING, TAKEN, Phase
from scheduler.state.state import State

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


def _replicas(state: State) -> list[Replica]:
    return [worker.replica for worker in state.workers if worker.leads]


def _check_requests(state: State) -> None:
    """Every request is in exactly one place: its model's queue, or one worker, of the pool or isolated."""
    for request in state.requests.values():
        queued = request.id in state.models[request.model].queue
        running = [it.lead.number for it in _replicas(state) if request.id in it.running]
        expected = [] if request.worker is None else [request.worker]
        _require(running == expected, f"request {request.id} runs on {running}, noted on {expected}")
        nowhere = request.worker is None and not request.isolated
        _require(queued == nowhere, f"request {request.id} is queued: {queued}, on {request.worker}")
    held = sum(len(model.queue) for model in state.models.values()) + sum(len(it.running) for it in _replicas(state))
    held += len(state.apart) + sum(len(found.waiting) + len(found.running) for found in state.isolations.values())
    _require(held == len(state.requests), f"{held} requests are held, {len(state.requests)} are known")


def _check_workers(state: State) -> None:
    for worker in state.workers:
        where = f"worker {worker.number}, {worker.phase}"
        pending = worker.pending is not None
        _require(pending == (worker.phase is Phase.PREPARING), f"{where}, has an activation pending: {pending}")
        _require(not worker.evicting or worker.phase in MAPPED, f"{where}, has nothing to be evicted")
        _require(worker in worker.replica.workers, f"{where}, is not in its own replica, {worker.replica}")
        wanted = worker.reserved_for is not None or worker.evicting
        lead = worker.replica.lead.number
        _require(worker.leads or not wanted, f"{where}, is wanted, and follows worker {lead}")
    for replica in _replicas(state):
        _check_replica(state, replica)


def _check_replica(state: State, replica: Replica) -> None:
    where = f"worker {replica.lead.number}, {replica.phase}"
    _require((replica.model is not None) == (replica.phase in WITH_MODEL), f"{where}, has model {replica.model}")
    _require(not replica.copying or replica.phase is Phase.ACTIVATING, f"{where}, copies weights")
    _require(not replica.running or replica.phase in SERVING, f"{where}, runs {len(replica.running)} requests")
    running = [state.requests[number] for number in replica.running]
    others = [request.id for request in running if request.model != replica.model]
    _require(not others, f"{where}, runs another model's requests {others}")
    promised = sum(request.kv_bytes for request in running)
    _require(
        replica.kv_promised == promised, f"{where}, {replica.kv_promised} bytes promised, its requests need {promised}"
    )
    _require(all(worker.replica is replica for worker in replica.workers), f"{where}, has workers of others")
    devices = {worker.device for worker in replica.workers}
    number = len(replica.workers)
    _require(len(devices) == number, f"{where}, two of its {number} workers share a device")
    wanted = state.model_of(replica.lead).tensor_parallel if replica.phase in WITH_MODEL else 1
    _require(number == wanted, f"{where}, has {number} workers, and needs {wanted}")


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
        serving = {it.lead.number for it in _replicas(state) if it.model == model.name and it.phase in TAKEN}
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
    under_way = sum(worker.replica.copying for worker in here)
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
