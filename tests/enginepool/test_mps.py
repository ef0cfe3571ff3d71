"""MPS daemons of the gateway's own: they start before the workers, end after them, and nobody else's is used.

NVIDIA's programs are played by tests.rig.fake_mps; the gateway, its workers and what becomes of them are real.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from config.errors import PoolError
from config.registry import PoolConfig
from enginepool import process
from enginepool.messages import FromWorker, MpsClient
from enginepool.mps import control
from enginepool.mps.control import mps_environment
from enginepool.mps.daemon import MpsDaemons
from enginepool.pool import supervisor
from enginepool.pool.forks import Child
from enginepool.pool.supervisor import Supervisor
from tests.enginepool.test_supervisor import Recorder, pid_of
from tests.rig.fake_mps import FakeMps, gpu_pool
from tests.rig.serving import PATIENCE, ServePrism

UUIDS = "GPU-11111111-1111-1111-1111-111111111111,GPU-22222222-2222-2222-2222-222222222222"


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", UUIDS)


@pytest.fixture
def as_a_gateway() -> Iterator[None]:
    process.set_subreaper(True)
    yield
    process.set_subreaper(False)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@asynccontextmanager
async def running(folder: Path, *, workers: int = 1, **fields: Any) -> AsyncIterator[tuple[Supervisor, Recorder]]:
    recorder = Recorder()
    devices = fields.pop("devices", ("cuda:0",))
    pool = Supervisor(PoolConfig(engine="simulated", devices=devices, workers_per_device=workers, **fields), folder)
    try:
        await pool.start(recorder)
        await recorder.until(lambda: len(recorder.ready) == workers * len(devices))
        yield pool, recorder
    finally:
        await pool.stop()


# who is whose client


def test_a_client_of_nobody_does_not_look_for_a_daemon_where_others_have_one() -> None:
    assert mps_environment(None) == {"CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}


def test_a_client_sees_the_daemons_gpu_by_its_uuid() -> None:
    environment = mps_environment(MpsClient("/pipes", "/pipes/logs", "GPU-1"))
    assert environment == {
        "CUDA_MPS_PIPE_DIRECTORY": "/pipes",
        "CUDA_MPS_LOG_DIRECTORY": "/pipes/logs",
        "CUDA_VISIBLE_DEVICES": "GPU-1",
    }


@pytest.mark.usefixtures("as_a_gateway")
async def test_each_gpu_has_a_daemon_of_its_own_with_a_server_that_is_ready(
    short_path: Path, fake_mps: FakeMps
) -> None:
    devices = ("cuda:0", "cuda:1")
    async with running(short_path, devices=devices, mps="on") as (pool, _):
        clients = [worker.mps for worker in pool.workers]
        assert [client.gpu for client in clients if client] == UUIDS.split(",")
        daemons = {found.environ()["CUDA_MPS_PIPE_DIRECTORY"]: found for found in fake_mps.processes("control")}
        assert daemons.keys() == {client.pipes for client in clients if client}
        assert [found.environ()["CUDA_VISIBLE_DEVICES"] for _, found in sorted(daemons.items())] == UUIDS.split(",")
        assert len(fake_mps.processes("server")) == 2
    assert fake_mps.processes() == []


@pytest.mark.usefixtures("as_a_gateway")
async def test_a_daemon_that_runs_for_others_is_left_alone(
    short_path: Path, fake_mps: FakeMps, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = short_path / "theirs"
    (theirs / "logs").mkdir(parents=True)
    for name, folder in (("CUDA_MPS_PIPE_DIRECTORY", theirs), ("CUDA_MPS_LOG_DIRECTORY", theirs / "logs")):
        monkeypatch.setenv(name, str(folder))
    other = subprocess.Popen(  # noqa: ASYNC220
        [str(fake_mps.folder / "nvidia-cuda-mps-control"), "-f"]
    )
    try:
        (short_path / "ours").mkdir()
        async with running(short_path / "ours", mps="on") as (pool, _):
            assert pool.workers[0].mps is not None
            assert not pool.workers[0].mps.pipes.startswith(str(theirs))
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()
        (theirs / "control").unlink()


# whether there is one


@pytest.mark.usefixtures("fake_mps", "as_a_gateway")
@pytest.mark.parametrize(
    ("fields", "used"),
    [
        ({"mps": "auto"}, False),
        ({"mps": "off"}, False),
        ({"mps": "on"}, True),
    ],
)
async def test_the_registry_says_whether_it_is_used(short_path: Path, fields: dict[str, Any], used: bool) -> None:
    async with running(short_path, **fields) as (pool, _):
        assert (pool.workers[0].mps is not None) == used


async def start_and_stop(pool: PoolConfig, folder: Path) -> MpsClient | None:
    mps = MpsDaemons(pool, folder, lambda device, reason: None)
    try:
        await mps.start()
        return await mps.client(pool.devices[0])
    finally:
        await mps.stop()


@pytest.mark.usefixtures("fake_mps")
@pytest.mark.parametrize(("workers", "used"), [(1, False), (2, True)])
async def test_auto_uses_it_where_several_sglang_workers_share_a_gpu(
    short_path: Path, workers: int, used: bool
) -> None:
    pool = PoolConfig(engine="sglang", devices=("cuda:0",), workers_per_device=workers)
    assert (await start_and_stop(pool, short_path) is not None) == used


async def test_auto_does_without_and_says_why(
    short_path: Path, fake_mps: FakeMps, caplog: pytest.LogCaptureFixture
) -> None:
    fake_mps.refuses_to_start("Operation not permitted")
    assert await start_and_stop(PoolConfig(engine="sglang", devices=("cuda:0",)), short_path) is None
    (told,) = [record.message for record in caplog.records if "in turns" in record.message]
    assert "the MPS daemon of cuda:0 does not start" in told
    assert "Operation not permitted" in told


async def test_on_is_an_error_where_it_cannot_be_had(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(short_path))
    with pytest.raises(PoolError, match=r"nvidia-cuda-mps-control, a part of NVIDIA.s driver, was not found"):
        await start_and_stop(PoolConfig(engine="sglang", devices=("cuda:0",), mps="on"), short_path)


@pytest.mark.usefixtures("fake_mps")
async def test_a_folder_whose_sockets_the_kernel_would_not_take_is_told(short_path: Path) -> None:
    folder = short_path / ("long" * 25)
    with pytest.raises(PoolError, match=r"too long for MPS; choose a shorter gateway\.admin_socket"):
        await start_and_stop(PoolConfig(engine="sglang", devices=("cuda:0",), mps="on"), folder)


# its end


def test_a_gateway_that_stops_ends_its_daemons_after_its_workers(serve_prism: ServePrism, fake_mps: FakeMps) -> None:
    prism = serve_prism({"pool": gpu_pool(), "models": [{"name": "a"}]})
    prism.wait_for_workers()
    assert len(fake_mps.processes()) == 2
    assert prism.stop() == 0
    assert fake_mps.processes() == []
    assert fake_mps.asked()[-1][1] == "quit"


@pytest.mark.parametrize("stopped", ["", "control", "server"])
def test_a_killed_gateway_leaves_nothing_of_its_daemons(
    serve_prism: ServePrism, fake_mps: FakeMps, stopped: str
) -> None:
    prism = serve_prism({"pool": gpu_pool(), "models": [{"name": "a"}]})
    for found in fake_mps.processes(stopped) if stopped else ():
        found.suspend()
    prism.kill()
    wait_for(lambda: fake_mps.processes() == [])
    shutil.rmtree(prism.folder)


def test_what_a_dead_gateway_has_left_is_swept_at_the_next_start(
    serve_prism: ServePrism, fake_mps: FakeMps, short_path: Path
) -> None:
    socket = {"admin_socket": str(short_path / "admin.sock")}
    first = serve_prism({"pool": gpu_pool(), "models": [{"name": "a"}], "gateway": socket})
    (server,), (daemon,) = fake_mps.processes("server"), fake_mps.processes("control")
    gateway, keeper = psutil.Process(first.process.pid), daemon.parent()
    assert keeper is not None
    gateway.suspend()  # else it would have the daemon replaced
    keeper.kill()
    gateway.kill()
    first.process.wait(PATIENCE)
    assert fake_mps.processes("server") == [server]
    serve_prism({"pool": gpu_pool(), "models": [{"name": "a"}], "gateway": socket})
    (another,) = fake_mps.processes("server")
    assert another != server


def test_what_its_programs_say_is_in_the_log(serve_prism: ServePrism, fake_mps: FakeMps) -> None:
    prism = serve_prism({"pool": gpu_pool(), "models": [{"name": "a"}]})
    assert any(" W prism.mps: cuda:0: [Server] A fault in the log" in line for line in prism.log)
    assert not any("Starting control daemon" in line for line in prism.log), "which is no warning"


# a daemon that dies


@pytest.mark.usefixtures("as_a_gateway")
async def test_a_dead_daemon_is_replaced_with_the_workers_of_its_gpu_only(short_path: Path, fake_mps: FakeMps) -> None:
    async with running(short_path, workers=2, devices=("cuda:0", "cuda:1"), mps="on") as (pool, recorder):
        others = [pid_of(pool, number) for number in (2, 3)]
        first = pool.workers[0].mps
        assert first is not None
        for found in fake_mps.processes("control"):
            if found.environ()["CUDA_MPS_PIPE_DIRECTORY"] == first.pipes:
                found.kill()
        await recorder.until(lambda: len(recorder.ready) == 6)
        assert recorder.faults == [("cuda:0", [0, 1], "its MPS daemon ended", False)]
        assert recorder.dead == []
        assert [pid_of(pool, number) for number in (2, 3)] == others
        assert len(fake_mps.processes("server")) == 2


@pytest.mark.usefixtures("fake_mps", "as_a_gateway")
async def test_after_a_fault_nobody_is_a_client_before_all_that_were_have_ended(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Child[FromWorker]] = []
    asked: list[str] = []
    client, reap = MpsDaemons.client, Child._reap_orphans

    def go_on_freeing_memory(child: Child[FromWorker]) -> None:
        left.append(child)

    async def become_client(mps: MpsDaemons, device: str) -> MpsClient | None:
        asked.append(device)
        return await client(mps, device)

    async with running(short_path, workers=2, mps="on") as (pool, recorder):
        monkeypatch.setattr(Child, "_reap_orphans", go_on_freeing_memory)
        monkeypatch.setattr(MpsDaemons, "client", become_client)
        pool._device_failed("cuda:0", "it failed", pool.workers, suspected=True)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(asyncio.shield(child.exited) for child in pool._failed["cuda:0"]))
        await asyncio.sleep(0)
        first, second = left
        monkeypatch.setattr(Child, "_reap_orphans", reap)
        first._reap_orphans()
        await asyncio.shield(first.gone)
        await asyncio.sleep(0)
        assert asked == []
        second._reap_orphans()
        await recorder.until(lambda: len(recorder.ready) == 4)
        assert asked == ["cuda:0", "cuda:0"]


@pytest.mark.usefixtures("as_a_gateway")
async def test_a_daemon_that_does_not_come_back_is_done_without(short_path: Path, fake_mps: FakeMps) -> None:
    async with running(short_path, mps="on") as (pool, recorder):
        fake_mps.refuses_to_start("out of everything")
        (daemon,) = fake_mps.processes("control")
        daemon.kill()
        await recorder.until(lambda: len(recorder.ready) == 2)
        assert pool.workers[0].mps is None


@pytest.mark.usefixtures("fake_mps", "as_a_gateway")
async def test_a_worker_can_be_started_apart_and_come_back(short_path: Path) -> None:
    async with running(short_path, mps="on") as (pool, recorder):
        pool.recycle(0, isolated=True)
        await recorder.until(lambda: len(recorder.ready) == 2)
        assert pool.workers[0].mps is None
        pool.recycle(0)
        await recorder.until(lambda: len(recorder.ready) == 3)
        assert pool.workers[0].mps is not None
        assert (recorder.dead, recorder.faults) == ([], [])


# clients that are ended


@pytest.mark.usefixtures("as_a_gateway")
async def test_a_worker_that_is_killed_is_taken_from_the_gpu_before(short_path: Path, fake_mps: FakeMps) -> None:
    async with running(short_path, workers=2, mps="on") as (pool, recorder):
        fake_mps.has_clients(pid_of(pool, 0), pid_of(pool, 1))
        (server,) = fake_mps.processes("server")
        victim = pid_of(pool, 0)
        pool.kill(0, "it was in the way")
        await recorder.until(lambda: bool(recorder.dead))
        assert recorder.dead == [(0, "it was in the way")]
        terminated = [words[2:] for words in fake_mps.asked() if words[1] == "terminate_client"]
        assert terminated == [[str(server.pid), str(victim)]]


@pytest.mark.usefixtures("as_a_gateway")
async def test_a_worker_is_killed_even_if_its_daemon_gets_stuck(
    short_path: Path, fake_mps: FakeMps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TERMINATION", 0.3)
    async with running(short_path, mps="on") as (pool, recorder):
        fake_mps.has_clients(pid_of(pool, 0))
        fake_mps.gets_stuck()
        pool.kill(0, "it was in the way")
        await recorder.until(lambda: bool(recorder.dead))
        (fake_mps.folder / "stuck").unlink()


@pytest.mark.usefixtures("as_a_gateway")
async def test_a_worker_that_does_not_stop_is_taken_from_the_gpu_before_it_is_killed(
    short_path: Path, fake_mps: FakeMps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT", 0.2)
    async with running(short_path, mps="on") as (pool, _):
        victim = pid_of(pool, 0)
        fake_mps.has_clients(victim)
        os.kill(victim, signal.SIGSTOP)
    assert [words[3] for words in fake_mps.asked() if words[1] == "terminate_client"] == [str(victim)]


def test_the_keeper_needs_nothing_but_the_standard_library_and_psutil() -> None:
    """It is started for each GPU, and must not take the seconds of an import of torch."""
    command = (
        "import sys, enginepool.mps.keeper; print([m for m in ('torch', 'sglang', 'aiohttp') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", command], text=True).strip() == "[]"
