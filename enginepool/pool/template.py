"""The template process: imports everything a worker needs once, then forks warm processes within milliseconds.

It has neither event loop nor threads, since a fork copies neither. Children are forked twice, so that the gateway, a
subreaper, adopts them: the gateway can wait for them, and the kernel kills them when the gateway dies. A template can
therefore die and be replaced without affecting any worker.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from typing import NoReturn

import msgspec

from config.errors import ChannelClosed, EngineError
from config.registry import PoolConfig
from enginepool import process
from enginepool.channel import BlockingChannel
from enginepool.engines.kinds import kind_of
from enginepool.messages import Exit, Spawn, Spawned, TemplateReady, ToTemplate
from enginepool.pool.worker import run_worker

log = logging.getLogger("prism.template")


class Template:
    def __init__(self, connection: socket.socket, pool: PoolConfig, gateway: int) -> None:
        self._connection = connection
        self._channel: BlockingChannel[ToTemplate] = BlockingChannel(connection, ToTemplate)
        self._pool = pool
        self._gateway = gateway

    def serve(self) -> None:
        """Fork on demand until told to exit or the gateway is gone."""
        while True:
            try:
                commands = self._channel.receive()
            except ChannelClosed:
                return
            for command in commands:
                if isinstance(command, Exit):
                    return
                self._channel.send(Spawned(command.serial, self._fork(command)))

    def _fork(self, spawn: Spawn) -> int:
        """Fork twice; returns the process id of the grandchild, which the gateway adopts.

        Raises:
            OSError: the system cannot create another process.
        """
        read_end, write_end = os.pipe()
        middle = os.fork()
        if middle == 0:
            os.close(read_end)
            self._fork_child(spawn, write_end)
        os.close(write_end)
        with open(read_end, "rb") as pipe:
            written = pipe.read(8)
        os.waitpid(middle, 0)
        if not written:
            raise OSError("the second fork failed")
        return int.from_bytes(written, "big")

    def _fork_child(self, spawn: Spawn, write_end: int) -> NoReturn:
        try:
            middle = os.getpid()
            child = os.fork()
            if child == 0:
                os.close(write_end)
                self._run_child(spawn, middle)
            os.setpgid(child, child)  # in the parent, so that the group exists before its id is reported
            os.write(write_end, child.to_bytes(8, "big"))
        finally:
            os._exit(0)

    def _run_child(self, spawn: Spawn, middle: int) -> NoReturn:
        try:
            self._connection.close()
            process.reset_signals()
            _rebuild_torch_threads()
            _wait_for_adoption(middle)
            process.die_with_parent(self._gateway)
            _run_role(spawn, self._pool)
        except Exception:
            log.exception("%s failed", spawn.name)
            os._exit(1)
        os._exit(0)


def _rebuild_torch_threads() -> None:
    """To be called in a forked child while it still has one thread, if an engine has imported torch.

    torch (2.13, aten/src/ATen/ParallelOpenMP.cpp) replaces its thread pool at its first use after a fork, and without a
    lock: two threads that come to it together can fail with "Invalid thread pool!".
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


def _wait_for_adoption(middle: int) -> None:
    """Wait until the intermediate process has ended and the gateway, or init if that is dead, has become the parent."""
    while os.getppid() == middle:
        time.sleep(0.0005)


def _run_role(spawn: Spawn, pool: PoolConfig) -> None:
    """Run the child's role. The imports are cheap here, since `warm` has loaded what they need."""
    if spawn.role == "loader":
        from enginepool.pool.loader_process import run_loader

        run_loader(spawn, pool)
    else:
        run_worker(spawn, pool)


def main() -> None:
    """`python -m enginepool.pool.template FD GATEWAY_PID POOL_JSON`; only started by the fork server."""
    fd, gateway, pool_json = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    process.die_with_parent(gateway)
    process.set_up_logging()
    process.make_stdout_lossy()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pool = msgspec.json.decode(pool_json, type=PoolConfig)
    began = time.monotonic()
    try:
        kind_of(pool).warm(pool)
    except EngineError as error:
        log.error("%s", error)
        sys.exit(1)
    connection = socket.socket(fileno=fd)
    template = Template(connection, pool, gateway)
    BlockingChannel[ToTemplate](connection, ToTemplate).send(TemplateReady(time.monotonic() - began))
    template.serve()


if __name__ == "__main__":
    main()
