"""The rank's main loop: builds, runs and tears down SGLang's Scheduler for one model after another."""

from __future__ import annotations

import logging
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import torch

from config.errors import EngineError, StoreError, describe
from enginepool.engines.phases import Phases
from enginepool.engines.sglang import arguments, upstream
from enginepool.engines.sglang.faults import is_device_fault
from enginepool.engines.sglang.protocol import (
    Build,
    BuildFailed,
    Built,
    Prepared,
    RankReady,
    StartRank,
    TornDown,
    WeightsCopied,
)
from enginepool.engines.sglang.rank import commands, preimport
from enginepool.engines.sglang.rank.device import RankDevice, open_device
from enginepool.process import trim_heap

if TYPE_CHECKING:  # it imports SGLang
    from enginepool.engines.sglang.rank.stored import StoredWeights

log = logging.getLogger("prism.rank")


def run_rank(connection: Connection, start: StartRank) -> None:
    """Execute the front's commands until it closes the connection."""
    torch.set_num_threads(start.threads)
    device = open_device(start.gpu, start.mps)
    connection.send(RankReady(device.used()))
    preimport.prepare_first_build(start.device)
    device.prepare_first_step()
    while True:
        try:
            command: Any = connection.recv()
        except EOFError:
            return
        if isinstance(command, Build):
            connection.send(_serve(command, connection, start, device))
        else:
            commands.carry_out_blank(command, connection, device)


def _serve(command: Build, connection: Connection, start: StartRank, device: RankDevice) -> BuildFailed | TornDown:
    """Build, run and tear down one model, in a frame of its own so that no local variable keeps the model alive."""
    from enginepool.engines.sglang.rank.stored import StoredWeights, loading

    weights: StoredWeights | None = None
    prepared = False
    try:
        weights = StoredWeights(command.weights.manifest, device)
        device.note_activity()
        with device.building():
            weights.fill(command.weights)  # first, since the copy takes longest and overlaps with everything below
            server_args = _arguments(command, start, device)
            connection.send(Prepared(server_args))
            prepared, phases = True, Phases()
            device.await_copy_on_stream()  # building may read weights, such as rotary tables
            with loading(weights, phases), _telling_when_copied(connection, device):
                scheduler = _build(command, server_args, device)
                phases.end("kv_cache")
        seconds = device.wait_copied()
        phases.end("copy")
    except Exception as error:  # an invalid checkpoint can make SGLang raise anything
        if is_device_fault(error):
            raise
        log.debug("building %s failed", command.model.name, exc_info=True)
        device.wait_copied()  # the copy may still be writing to memory that is freed below
        reason = _describe_failure(command, error)
        del weights
        _clear(error)
        _forget(device, Phases())
        failed = BuildFailed(reason, upstream.half_built())
        if not prepared:
            connection.send(failed)
        return failed
    alive = upstream.watch(scheduler) | {"weights": weights.watch()}
    serving = commands.Serving(scheduler, weights, device, device.kv_cache(scheduler), connection, start.patience)
    limited = serving.kv.set_limit(command.kv_revision, command.kv_limit) if command.kv_limit else None
    commands.install(serving)
    device.note_activity()  # the request that caused the activation is about to arrive
    memory = min(device.memory, start.device_memory or device.memory)
    connection.send(_describe_built(serving, memory, seconds, limited is None or limited.applied, phases))
    scheduler.run_event_loop()
    phases = Phases()
    upstream.release(scheduler)
    del scheduler, weights, serving
    phases.end("release")
    _forget(device, phases)
    return TornDown(_still_alive(alive), device.used(), phases.seconds)


def _arguments(command: Build, start: StartRank, device: RankDevice) -> Any:
    kv_memory = start.kv_memory or device.memory
    return arguments.server_args(command.model, start.max_running, kv_memory, start.device)


def _build(command: Build, server_args: Any, device: RankDevice) -> Any:
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.server_args import set_global_server_args_for_scheduler

    from enginepool.engines.sglang.rank import kv_reservation, quarantine
    from enginepool.engines.sglang.rank.stored import StoredModelLoader

    upstream.init_distributed_by(command.rendezvous)
    server_args.override("prism", load_format=StoredModelLoader)
    set_global_server_args_for_scheduler(server_args)
    scheduler = Scheduler(
        server_args,
        command.port_args,
        gpu_id=device.gpu_id,
        tp_rank=0,
        moe_ep_rank=0,
        pp_rank=0,
        attn_cp_rank=0,
        moe_dp_rank=0,
        dp_rank=None,
    )
    kv_reservation.install(scheduler)
    quarantine.install(scheduler)
    return scheduler


def _forget(device: RankDevice, phases: Phases) -> None:
    upstream.forget_model()
    phases.end("forget")
    device.forget()
    phases.end("memory")
    trim_heap()
    phases.end("heap")


@contextmanager
def _telling_when_copied(connection: Connection, device: RankDevice) -> Iterator[None]:
    """Tell the front when the copy is done, from a thread. Nothing else may be sent on the connection meanwhile."""

    def tell() -> None:
        device.wait_copied()
        with suppress(OSError):  # the front is gone, so this process will end too
            connection.send(WeightsCopied())

    thread = threading.Thread(target=tell, name="copied", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _describe_failure(command: Build, error: Exception) -> EngineError | StoreError:
    if isinstance(error, (EngineError, StoreError)):
        return type(error)(str(error))  # a copy without the traceback, whose frames hold the model
    return EngineError(f"{command.model.name}: SGLang cannot serve {command.model.path}: {describe(error)}")


def _describe_built(
    serving: commands.Serving, memory: int, copy_seconds: float, limited: bool, phases: Phases
) -> Built:
    scheduler = serving.scheduler
    return Built(
        max_input=min(scheduler.max_req_input_len, _most_tokens(serving, memory)),
        pool_tokens=scheduler.max_total_num_tokens,
        kv_bytes_per_token=serving.kv.bytes_per_token,
        held=serving.held(),
        copy_seconds=copy_seconds,
        limited=limited,
        phases=phases.seconds,
    )


def _most_tokens(serving: commands.Serving, memory: int) -> int:
    """Tokens that the KV cache could hold with all of `memory` (bytes); longer prompts would wait forever."""
    if not memory:
        return int(serving.scheduler.max_total_num_tokens)
    return int((memory - serving.weights.flat.nbytes - serving.held()) / serving.kv.bytes_per_token)


def _still_alive(references: dict[str, weakref.ref[Any]]) -> tuple[str, ...]:
    return tuple(name for name, reference in references.items() if reference() is not None)


def _clear(error: BaseException) -> None:
    """Clear the frames of an error and its causes, which hold the half-built Scheduler."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    sys.last_value = None
