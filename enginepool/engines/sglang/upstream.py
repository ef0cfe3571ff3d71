"""Adapts SGLang from outside.

Tested with SGLang 0.5.17. Nothing of SGLang may be imported before `prepare` has run in the process.
"""

from __future__ import annotations

import gc
import importlib.metadata
import importlib.util
import logging
import os
import sys
import types
import warnings
import weakref
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

from config.errors import EngineError
from enginepool import tested
from enginepool.engines.sglang import groups, tokenizers

TESTED = tested.SGLANG
_USUAL = (
    "but the state was deleted in TokenizerManager",
    "Request is disconnected from the client side",
    "[http_server] Error: ",
)
"""Parts of messages that SGLang and asyncio log as errors when a client disconnects or gets status 400."""
_FOR_NAMES_ONLY = ("torchvision", "sgl_kernel")
"""Packages that SGLang always imports but only calls on a GPU. Their builds on PyPI do not load with a CPU torch."""


def prepare(gpu: bool) -> None:
    """Import SGLang and adapt it. Once per process, before anything else in this package.

    Without `gpu`, packages that only load with a GPU are replaced by stubs.

    Raises:
        EngineError: SGLang is missing or of an untested version.
    """
    check_version()
    if not gpu:
        sys.meta_path.append(_StandIns())
        os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
    _quieten()
    import sglang.srt.managers.scheduler
    import sglang.srt.models.registry  # noqa: F401

    _compile_nothing()
    _replace_watchdog()
    tokenizers.keep()
    tokenizers.detect_once()
    tokenizers.make_grammars_late()
    _leave_at_once()
    groups.keep_off_the_network()
    _move_load_snapshots()


def check_version() -> None:
    """Check the installed version of SGLang.

    Raises:
        EngineError: SGLang is missing or of an untested version.
    """
    try:
        version = importlib.metadata.version("sglang")
    except importlib.metadata.PackageNotFoundError as error:
        raise EngineError("the engine sglang needs the package sglang, which is not installed") from error
    if version not in TESTED:
        raise EngineError(f"the engine sglang needs SGLang {' or '.join(TESTED)}; {version} is installed")


class _Named(type):
    """A class that has every attribute but cannot be instantiated."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return name

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise EngineError(f"SGLang needs {cls.__module__}.{cls.__name__}, which only exists on a GPU")


class _StandIn(types.ModuleType):
    """A module in which every name is an empty class."""

    __version__ = "0.26"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Named(name, (), {"__module__": self.__name__})


class _StandIns(MetaPathFinder, Loader):
    """A finder for stubs. It is the last one, so that installed packages take precedence."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in _FOR_NAMES_ONLY:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _quieten() -> None:
    """Silence warnings about features missing without a GPU, and progress bars in the log."""
    logging.getLogger("sglang").setLevel(logging.ERROR)
    for name in ("sglang.srt.managers.tokenizer_manager", "sglang.srt.entrypoints.http_server", "asyncio"):
        logging.getLogger(name).addFilter(_is_not_usual)
    warnings.filterwarnings("ignore", module="sglang")
    from sglang.srt.model_loader import weight_utils

    weight_utils.tqdm = weight_utils.DisabledTqdm


def _is_not_usual(record: logging.LogRecord) -> bool:
    """A log filter: clients that disconnect or send invalid requests are not errors."""
    text = record.getMessage()
    return not any(sign in text for sign in _USUAL)


def _compile_nothing() -> None:
    """Disable torch.compile, which SGLang uses for small functions: sampling steps, a grammar's mask, sums.

    Each process would trace and compile them at the first request that needs them: seconds on a GPU (fewer if torch has
    them cached), half a minute in a C++ compiler on a CPU.
    """
    import torch._dynamo

    torch._dynamo.config.disable = True


def _replace_watchdog() -> None:
    """Remove the watchdog, whose daemon thread would keep the Scheduler, and so the model, alive forever. The front
    watches the rank instead."""
    from sglang.srt.managers import scheduler

    scheduler.create_scheduler_watchdog = lambda *args, **kwargs: None


def _leave_at_once() -> None:
    """Keep an idle Scheduler from sleeping for another second after it was told to stop."""
    from sglang.srt.managers.scheduler import Scheduler

    sleep = Scheduler.maybe_sleep_on_idle

    def sleep_unless_leaving(scheduler: Any) -> None:
        if not scheduler.gracefully_exit:
            sleep(scheduler)

    Scheduler.maybe_sleep_on_idle = sleep_unless_leaving


def _move_load_snapshots() -> None:
    """Put load snapshots into the model's socket folder, whose path is `PortArgs.instance_id`, instead of /dev/shm."""
    from sglang.srt.managers import load_snapshot

    load_snapshot.shm_path_for = lambda folder: f"{folder}/load"


def watch(scheduler: Any) -> dict[str, weakref.ref[Any]]:
    """Weak references to the objects that must be gone after a teardown."""
    runner = scheduler.tp_worker.model_runner
    watched = {
        "Scheduler": scheduler,
        "ModelRunner": runner,
        "model": runner.model,
        "KV pool": scheduler.token_to_kv_pool_allocator.get_kvcache(),
        "radix cache": scheduler.tree_cache,
    }
    return {name: weakref.ref(it) for name, it in watched.items()}


def half_built() -> tuple[str, ...]:
    """Names of the classes of objects that a failed build has left in this process."""
    # type() instead of isinstance(), which raises for weak proxies of dead objects.
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.model_executor.model_runner import ModelRunner

    return tuple({type(it).__name__ for it in gc.get_objects() if issubclass(type(it), (Scheduler, ModelRunner))})


def release(scheduler: Any) -> None:
    """Release a Scheduler's external resources before it is dropped."""
    scheduler.metrics_reporter._shutdown_fpm()
    scheduler.release_host_resources()
    if scheduler.load_snapshot_writer is not None:
        scheduler.load_snapshot_writer.close()


def forget_model() -> None:
    """Drop SGLang's global state of a model in this process. Also safe after a failed build."""
    from sglang.srt import runtime_context
    from sglang.srt.distributed import parallel_state

    close_all_sockets()
    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()
    runtime_context.reset_context()
    forget_rotary_embeddings()
    gc.collect()


def forget_rotary_embeddings() -> None:
    """Clear SGLang's cache of rotary embeddings, which would keep this model's tensors alive."""
    from sglang.srt.layers.rotary_embedding import factory

    factory._ROPE_DICT.clear()


def close_all_sockets() -> None:
    """Close all ZeroMQ sockets of this process, without linger: otherwise collecting their context could block
    forever."""
    import zmq

    sockets = [it for it in gc.get_objects() if issubclass(type(it), zmq.Socket) and not it.closed]
    for socket in sockets:
        socket.close(linger=0)


def close_sockets(*sockets: Any) -> None:
    """Close these ZeroMQ sockets and end their contexts."""
    contexts = {socket.context for socket in sockets}
    for socket in sockets:
        socket.close(linger=0)
    for context in contexts:
        context.term()


def send_shutdown(port_args: Any) -> None:
    """Tell a rank to stop whose front half could not be built."""
    import zmq
    from sglang.srt.managers.io_struct import ShutdownReq, sock_send

    with zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.bind(port_args.scheduler_input_ipc_name)
        sock_send(socket, ShutdownReq())


def bind_unused(port_args: Any) -> Any:
    """Bind a socket for SGLang's RPCs, which are unused. Without it, the rank would try to connect ten times per
    second."""
    import zmq

    socket = zmq.Context().socket(zmq.DEALER)
    socket.bind(port_args.rpc_ipc_name)
    return socket


def init_distributed_by(path: str) -> None:
    """Make the next build use a file for its process group's rendezvous, instead of a TCP port that may be taken."""
    from sglang.srt.environ import envs

    envs.SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE.set(f"file://{path}")
