"""The pool from inside: workers start, are watched, are replaced, and end. Real processes, the simulated engine."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from config.errors import PoolError
from config.registry import PoolConfig
from enginepool import process
from enginepool.messages import Exit, FromWorker, MpsClient, Ping, Pong, WorkerReady
from enginepool.pool import forks, supervisor
from enginepool.pool.forks import Child, ForkServer
from enginepool.pool.supervisor import Supervisor
from tests.rig.children import own_children
from tests.rig.serving import PATIENCE


class Recorder:
    """What the pool has told; `until` waits for more."""

    def __init__(self) -> None:
        self.ready: list[tuple[int, int]] = []
        """Worker and process id."""
        self.dead: list[tuple[int, str]] = []
        self.faults: list[tuple[str, list[int], str, bool]] = []
        self.pongs: list[int] = []
        self._news = asyncio.Event()

    def worker_message(self, worker: int, message: FromWorker) -> None:
        if isinstance(message, WorkerReady):
            self.ready.append((worker, message.pid))
        if isinstance(message, Pong):
            self.pongs.append(worker)
        self._news.set()

    def worker_dead(self, worker: int, reason: str) -> None:
        self.dead.append((worker, reason))
        self._news.set()

    def device_fault(self, device: str, workers: Sequence[int], reason: str, suspected: bool) -> None:
        self.faults.append((device, list(workers), reason, suspected))
        self._news.set()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not holds():
                self._news.clear()
                await self._news.wait()


@pytest.fixture(autouse=True)
def as_a_gateway(count_children: None) -> Iterator[None]:
    process.set_subreaper(True)
    yield
    process.set_subreaper(False)
    assert own_children() == [], "every child is reaped"


@asynccontextmanager
async def running(folder: Path, *, workers: int = 1, **fields: Any) -> AsyncIterator[tuple[Supervisor, Recorder]]:
    """A pool whose workers are up."""
    recorder = Recorder()
    pool = Supervisor(PoolConfig(engine="simulated", workers_per_device=workers, **fields), folder)
    try:
        await pool.start(recorder)
        await recorder.until(lambda: len(recorder.ready) == workers)
        yield pool, recorder
    finally:
        await pool.stop()


def pid_of(pool: Supervisor, worker: int = 0) -> int:
    pid = pool.workers[worker].pid
    assert pid is not None
    return pid


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


# starting and ending


async def test_every_worker_reports_under_its_own_number(tmp_path: Path) -> None:
    async with running(tmp_path, workers=3) as (pool, recorder):
        assert sorted(recorder.ready) == [(number, pid_of(pool, number)) for number in range(3)]
        assert sockets(tmp_path) == []


async def test_a_worker_leads_a_process_group_of_its_own(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as (pool, _):
        assert [os.getpgid(pid_of(pool, number)) for number in (0, 1)] == [pid_of(pool, 0), pid_of(pool, 1)]


async def test_stopping_ends_every_process(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as (pool, recorder):
        pids = [pid_of(pool, 0), pid_of(pool, 1), pool.forks.template_pid]
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)
    assert recorder.dead == []


async def test_stopping_ends_workers_that_are_stopped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT", 0.1)
    monkeypatch.setattr(forks, "EXIT_TIMEOUT", 0.1)
    async with running(tmp_path) as _:
        for child in own_children():
            child.suspend()
    assert own_children() == []


async def test_stopping_while_a_worker_is_being_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forks, "EXIT_TIMEOUT", 0.1)
    async with running(tmp_path) as (pool, recorder):
        template(pool).suspend()
        os.kill(pid_of(pool), signal.SIGKILL)
        await recorder.until(lambda: bool(recorder.dead))
        await until(lambda: bool(sockets(tmp_path)))
    assert sockets(tmp_path) == []


async def test_a_start_that_is_given_up_leaves_no_template(tmp_path: Path) -> None:
    pool = Supervisor(PoolConfig(engine="transformers"), tmp_path)
    starting = asyncio.create_task(pool.start(Recorder()))
    await until(lambda: bool(own_children()))
    starting.cancel()
    await asyncio.wait((starting,))
    assert starting.cancelled()
    await pool.stop()


async def test_a_template_that_ends_at_once_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    pool = Supervisor(PoolConfig(engine="simulated"), tmp_path)
    with pytest.raises(PoolError, match="template process did not start"):
        await pool.start(Recorder())
    await pool.stop()


# deaths


async def die_by_signal(pool: Supervisor) -> None:
    os.kill(pid_of(pool), signal.SIGKILL)


async def die_by_order(pool: Supervisor) -> None:
    pool.kill(0, "it was in the way")


async def leave(pool: Supervisor) -> None:
    pool.send(0, Exit())


@pytest.mark.parametrize(
    ("die", "reason"),
    [(die_by_signal, "killed by SIGKILL"), (die_by_order, "it was in the way"), (leave, "")],
)
async def test_a_worker_that_ends_is_replaced(
    tmp_path: Path, die: Callable[[Supervisor], Awaitable[None]], reason: str
) -> None:
    async with running(tmp_path) as (pool, recorder):
        before = pid_of(pool)
        await die(pool)
        await recorder.until(lambda: len(recorder.ready) == 2)
        assert pid_of(pool) != before
        assert pool.workers[0].restarts == 1
        ((number, told),) = recorder.dead
        assert number == 0
        assert reason in told


async def test_a_silent_worker_is_killed_and_a_lively_one_is_not(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2, heartbeat=0.2, silence=2.0) as (pool, recorder):
        os.kill(pid_of(pool, 0), signal.SIGSTOP)
        await recorder.until(lambda: bool(recorder.dead))
        assert recorder.dead == [(0, "silent for 2 s")]
        assert recorder.pongs.count(1) >= 5
        await recorder.until(lambda: len(recorder.ready) == 3)


async def test_a_worker_that_never_gets_ready_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "START_TIMEOUT", 0.1)
    async with impostors(tmp_path, sends=b"") as recorder:
        await recorder.until(lambda: len(recorder.dead) == 2)
    assert set(recorder.dead) == {(0, "not ready after 0.1 s")}


async def test_a_worker_that_sends_garbage_is_replaced(tmp_path: Path) -> None:
    async with impostors(tmp_path, sends=b"\xff\xff\xff\xff") as recorder:
        await recorder.until(lambda: len(recorder.dead) == 2)
    assert set(recorder.dead) == {(0, "frame of 4294967295 bytes; the maximum is 1073741824")}


async def test_a_worker_that_sends_messages_nobody_knows_is_replaced(tmp_path: Path) -> None:
    async with impostors(tmp_path, sends=b"\x00\x00\x00\x01\x00") as recorder:
        await recorder.until(lambda: len(recorder.dead) == 1)
    assert "frame with unknown content" in recorder.dead[0][1]


async def test_a_worker_that_closes_its_connection_is_replaced(tmp_path: Path) -> None:
    async with impostors(tmp_path, sends=None) as recorder:
        await recorder.until(lambda: len(recorder.dead) == 2)
    assert set(recorder.dead) == {(0, "killed by SIGKILL")}


async def test_a_recycled_worker_makes_room_for_a_new_one_and_counts_as_no_death(tmp_path: Path) -> None:
    async with running(tmp_path, workers=2) as (pool, recorder):
        before = pid_of(pool, 0)
        pool.recycle(0)
        await recorder.until(lambda: len(recorder.ready) == 3)
        assert recorder.ready[-1] == (0, pid_of(pool, 0))
        assert pid_of(pool, 0) != before
        assert (recorder.dead, pool.workers[0].restarts) == ([], 0)


async def test_a_recycled_worker_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT", 0.1)
    async with running(tmp_path) as (pool, recorder):
        os.kill(pid_of(pool), signal.SIGSTOP)
        pool.recycle(0)
        await recorder.until(lambda: len(recorder.ready) == 2)
        assert recorder.dead == []


async def test_messages_for_a_dead_worker_are_dropped(tmp_path: Path) -> None:
    async with running(tmp_path) as (pool, recorder):
        os.kill(pid_of(pool), signal.SIGKILL)
        await recorder.until(lambda: bool(recorder.dead))
        pool.send(0, Ping(1))
        pool.kill(0, "again")
        await recorder.until(lambda: len(recorder.ready) == 2)


def test_only_repeated_early_deaths_are_waited_for() -> None:
    delays = [supervisor._restart_delay(deaths) for deaths in (0, 1, 2, 3, 4, 8, 100_000)]
    assert delays == [0.0, 0.0, 0.5, 1.0, 2.0, 30.0, 30.0]


async def test_replacing_workers_costs_no_file_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RESTART_DELAY", 0.0)
    async with running(tmp_path) as (pool, recorder):
        before = len(os.listdir("/proc/self/fd"))
        for deaths in range(1, 11):
            os.kill(pid_of(pool), signal.SIGKILL)
            await recorder.until(lambda deaths=deaths: len(recorder.ready) == 1 + deaths)  # type: ignore[misc]
        assert len(os.listdir("/proc/self/fd")) == before


# the template


@pytest.mark.parametrize("how", [psutil.Process.kill, psutil.Process.suspend], ids=["killed", "suspended"])
async def test_a_template_that_cannot_fork_is_replaced_at_the_next_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[[psutil.Process], None]
) -> None:
    async with running(tmp_path) as (pool, recorder):
        before = pool.forks.template_pid
        monkeypatch.setattr(forks, "SPAWN_TIMEOUT", 0.1)
        how(template(pool))
        os.kill(pid_of(pool), signal.SIGKILL)
        await recorder.until(lambda: len(recorder.dead) == 1)
        await until(lambda: pool.forks.template_pid != before)
        monkeypatch.undo()
        await recorder.until(lambda: len(recorder.ready) == 2)


async def test_what_a_template_was_forking_when_it_ended_ends_with_it(tmp_path: Path) -> None:
    """Nobody has been told of it. `as_a_gateway` sees what is left."""
    async with running(tmp_path) as (pool, recorder):
        async with asyncio.timeout(PATIENCE):
            while not await killed_in_the_middle_of_a_fork(pool, recorder):
                continue
        await recorder.until(lambda: len(recorder.ready) > len(recorder.dead))


async def test_what_stands_in_the_way_of_a_fork_is_told_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    async with running(folder) as (pool, recorder):
        folder.rename(tmp_path / "away")
        os.kill(pid_of(pool), signal.SIGKILL)
        await recorder.until(lambda: len(recorder.dead) == 2)
        assert "worker-0 cannot be started: [Errno 2]" in recorder.dead[1][1]
        (tmp_path / "away").rename(folder)
        await recorder.until(lambda: len(recorder.ready) == 2)


async def test_nothing_is_forked_after_the_end(tmp_path: Path) -> None:
    server = ForkServer(PoolConfig(engine="simulated"), tmp_path)
    await server.start()
    await server.stop()
    with pytest.raises(PoolError, match="has stopped"):
        await server.fork("worker", "late", "cpu", FromWorker)


# helpers


def template(pool: Supervisor) -> psutil.Process:
    return psutil.Process(pool.forks.template_pid)


async def killed_in_the_middle_of_a_fork(pool: Supervisor, recorder: Recorder) -> bool:
    """Whether the template was: the middle of its two forks is there for some milliseconds only."""
    dying, ready = template(pool), len(recorder.ready)
    forks_now = Path(f"/proc/{dying.pid}/task/{dying.pid}/children")
    os.kill(pid_of(pool), signal.SIGKILL)
    while len(recorder.ready) == ready:
        if forks_now.read_text():  # noqa: ASYNC240
            dying.kill()
            return True
        await asyncio.sleep(0)
    return False


def sockets(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_socket()]


class Impostors(ForkServer):
    """Its children are processes that sleep, in whose place we have connected and sent something (None: hung up)."""

    def __init__(self, folder: Path, sends: bytes | None) -> None:
        self._path = folder / "impostor"
        self._sends = sends
        self._connections: list[socket.socket] = []

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        for connection in self._connections:
            connection.close()

    async def fork(self, role: str, name: str, device: str, union: Any, mps: MpsClient | None = None) -> Child[Any]:
        with forks._listen(self._path) as listener:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(self._path))
            self._path.unlink()
            self._connections.append(connection)
            if self._sends is None:
                connection.close()
            else:
                connection.sendall(self._sends)
            child: Child[Any] = Child(name, sleeper())
            await forks._connect(child, listener, union)
            return child


def sleeper() -> int:
    return os.posix_spawn("/bin/sleep", ["sleep", "3600"], os.environ, setpgroup=0)


@asynccontextmanager
async def impostors(folder: Path, sends: bytes | None) -> AsyncIterator[Recorder]:
    recorder = Recorder()
    pool = Supervisor(PoolConfig(engine="simulated", workers_per_device=1), folder)
    pool.forks = Impostors(folder, sends)
    try:
        await pool.start(recorder)
        yield recorder
    finally:
        await pool.stop()


async def test_a_new_worker_is_told_of_once_nothing_is_left_of_the_one_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left: list[Child[FromWorker]] = []

    def go_on_freeing_memory(child: Child[FromWorker]) -> None:
        left.append(child)

    async with running(tmp_path) as (pool, recorder):
        monkeypatch.setattr(Child, "_reap_orphans", go_on_freeing_memory)
        os.kill(pid_of(pool), signal.SIGKILL)
        await recorder.until(lambda: len(recorder.dead) == 1)
        await until(lambda: (child := pool.workers[0].child) is not None and len(child._early) > 0)
        assert len(recorder.ready) == 1
        monkeypatch.undo()
        left[0]._reap_orphans()
        await recorder.until(lambda: len(recorder.ready) == 2)
        assert recorder.ready[1] == (0, pid_of(pool))
