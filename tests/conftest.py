"""Fixtures that every test gets. The most important one lets no test leave anything behind."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import settings

from tests.rig.serving import Prism, ServePrism

pytest_plugins = (
    "tests.rig.sharing",
    "tests.rig.children",
    "tests.rig.models",
    "tests.rig.sglang_models",
    "tests.rig.sglang_programs",
    "tests.rig.fake_mps",
)

# The same cases at every run, so that a commit passes or fails for what is in it; `make fuzz` looks for new ones.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("fuzz", deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("PRISM_CASES", "same"))

MARK = "PRISM_TEST_RUN"
"""Environment variable by which processes that a test started are known, whoever their parent is by now."""


@pytest.fixture(scope="session", autouse=True)
def run_mark() -> Iterator[str]:
    """Of this worker of pytest-xdist, if there are several. At its end nothing is left of what tests have shared."""
    mark = uuid.uuid4().hex
    os.environ[MARK] = mark
    yield mark
    _assert_they_end(list(_processes(mark).values()))


@pytest.fixture(autouse=True)
def nothing_is_left_behind(run_mark: str, tmp_path: Path) -> Iterator[None]:
    """No process, no shared memory, no socket of a test outlives it. A gateway that tests share may replace workers."""
    shared_memory, known = _shared_memory(), _processes(run_mark)
    yield
    new = [process for pid, process in _processes(run_mark).items() if pid not in known]
    _assert_they_end([process for process in new if not _ancestors(process) & known.keys()])
    files = _shared_memory().keys() - shared_memory.keys()
    if files:
        files -= _used_elsewhere(run_mark)
        files &= _shared_memory().keys()  # others at work on this host remove theirs too
    assert not files, f"shared memory is left: {files}"
    _assert_no_sockets(tmp_path)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, whatever the test is called."""
    with tempfile.TemporaryDirectory(prefix="prism-test-") as folder:
        yield Path(folder)
        _assert_no_sockets(Path(folder))


@pytest.fixture
def serve_prism(short_path: Path) -> Iterator[ServePrism]:
    """Starts gateways: `serve_prism(registry_dict)` returns one that listens; all are stopped at the end."""
    started: list[Prism] = []

    def start(registry: dict[str, object], *, arguments: tuple[str, ...] = ()) -> Prism:
        prism = Prism.start(short_path / f"gateway-{len(started)}", registry, arguments)
        started.append(prism)
        return prism

    yield start
    for prism in started:
        prism.close()


def _assert_no_sockets(folder: Path) -> None:
    left = [path for path in folder.rglob("*") if path.is_socket() or path.name.endswith(".lock")]
    assert not left, f"sockets or locks are left: {left}"


def _processes(mark: str) -> dict[int, psutil.Process]:
    found = {}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                found[process.pid] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def _assert_they_end(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=5)
    described = [f"{process.pid} {_cmdline(process)}" for process in left]
    for process in left:
        process.kill()
    assert not described, f"processes are left: {described}"


def _ancestors(process: psutil.Process) -> set[int]:
    try:
        return {it.pid for it in process.parents()}
    except psutil.Error:
        return set()


def _cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "(gone)"


def _shared_memory() -> dict[str, int]:
    """Files in /dev/shm and their inodes."""
    return {entry.name: entry.inode() for entry in os.scandir("/dev/shm")}


def _used_elsewhere(mark: str) -> set[str]:
    """Those that processes of no test use: others are at work on this host. By inode, for a semaphore is renamed."""
    inodes = set()
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) != mark:
                lines = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
                inodes |= {int(line.split()[4]) for line in lines if "/dev/shm/" in line}
        except (OSError, psutil.Error):  # it has ended
            continue
    return {name for name, inode in _shared_memory().items() if inode in inodes}
