"""Keeps torch's process groups from opening ports that other users or hosts could connect to.

gloo listens on TCP for every group, on the address of the host's name, even in a group of one. Here, a group of one
rank gets torch's fake backend, which does not communicate; groups of several ranks use loopback. Written for torch 2.11
to 2.13.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any, NoReturn

from config.errors import EngineError

_LOOPBACK = "127.0.0.1"
_LEFT_OUT = (
    "gather",
    "scatter",
    "reduce_scatter",
    "_reduce_scatter_base",
    "alltoall",
    "alltoall_base",
    "send",
    "recv",
    "recv_anysource",
)
"""Operations that torch 2.11's fake backend silently ignores. SGLang uses none of them in a group of one."""


def keep_off_the_network() -> None:
    """Replace torch's gloo backend as described above. Once per process, before the first group is created."""
    from torch.distributed import distributed_c10d

    c10d: Any = distributed_c10d
    shared, alone = _shared_loop(c10d), _alone(c10d)

    class Groups(type):
        def __call__(cls, store: Any, rank: int, size: int, timeout: Any) -> Any:
            return alone(rank) if size == 1 else shared(store, rank, size, timeout)

        def __instancecheck__(cls, it: object) -> bool:
            return isinstance(it, (alone, shared))

    c10d.ProcessGroupGloo = Groups("ProcessGroupGloo", (), {})


def _alone(c10d: Any) -> Any:
    """A group of one rank, in which all-reduce, broadcast and all-gather return its own data."""
    import torch
    from torch._C._distributed_c10d import FakeProcessGroup

    class Alone(c10d.ProcessGroup):  # type: ignore[misc]
        def __init__(self, rank: int) -> None:
            super().__init__(rank, 1)
            self.options = SimpleNamespace()  # torch writes into it
            backend = FakeProcessGroup._create_internal(rank, 1)
            self._register_backend(torch.device("cpu"), c10d.ProcessGroup.BackendType.CUSTOM, backend)

        def _set_sequence_number_for_group(self) -> None:
            """There are no messages to count."""

        def monitored_barrier(self, *args: Any, **kwargs: Any) -> None:
            """All ranks are present."""

    for name in _LEFT_OUT:
        setattr(Alone, name, _refuse)
    return Alone


def _refuse(*args: Any, **kwargs: Any) -> NoReturn:
    raise EngineError("this operation is not supported in a process group of one rank")


def _shared_loop(c10d: Any) -> Any:
    """gloo on loopback, with one device for all groups. By default, each of the Scheduler's seven groups would have a
    thread that wakes every 10 ms."""
    gloo = c10d.ProcessGroupGloo
    # Created on first use, in the rank, because its thread would not survive a fork.
    device = cache(lambda: gloo.create_device(hostname=_LOOPBACK))

    class SharedLoop(gloo):  # type: ignore[misc, valid-type]
        def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
            options = gloo._Options()
            options._devices, options._timeout = [device()], timeout
            super().__init__(store, rank, size, options)

    return SharedLoop
