"""A log whose reader stops: whoever writes goes on, and what was lost is told. Real pipes, sockets and processes."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from enginepool.lossy_stream import PIPE_SIZE, LossyStream, open_lossy
from tests.rig.asking import chat
from tests.rig.serving import Prism, simulated


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read_end, write_end = os.pipe()
    yield read_end, write_end
    os.close(read_end)
    os.close(write_end)


def fill(write_end: int) -> int:
    """To the last byte; returns how many there were room for."""
    os.set_blocking(write_end, False)
    written = 0
    try:
        for size in (4096, 1):
            try:
                while True:
                    written += os.write(write_end, b"." * size)
            except BlockingIOError:
                continue
    finally:
        os.set_blocking(write_end, True)
    return written


def read_all(read_end: int) -> str:
    os.set_blocking(read_end, False)
    found = b""
    try:
        while piece := os.read(read_end, 1 << 20):
            found += piece
    except BlockingIOError:
        return found.decode()
    return found.decode()


def test_lines_are_written_as_they_are(pipe: tuple[int, int]) -> None:
    stream = open_lossy(pipe[1])
    long = "x" * 20_000
    print("first", long, "é🌈", sep="\n", file=stream)
    assert read_all(pipe[0]) == f"first\n{long}\né🌈\n"


def test_a_full_pipe_loses_lines_and_the_next_reader_hears_how_many(pipe: tuple[int, int]) -> None:
    stream = open_lossy(pipe[1])
    fill(pipe[1])
    for _ in range(3):
        stream.write("nobody reads this\n")
    read_all(pipe[0])
    stream.write("here again\n")
    assert read_all(pipe[0]) == "3 log lines were dropped: nobody read them\nhere again\n"


def test_a_line_that_found_room_for_its_first_part_does_not_swallow_the_next(pipe: tuple[int, int]) -> None:
    stream = open_lossy(pipe[1])
    room = fill(pipe[1])
    os.read(pipe[0], 8192)
    stream.write("x" * room + "\n")
    assert read_all(pipe[0]).endswith("x")
    stream.write("here again\n")
    assert read_all(pipe[0]).splitlines()[1:] == ["1 log lines were dropped: nobody read them", "here again"]


def test_a_pipe_holds_a_mebibyte_for_a_slow_reader_and_stays_as_it_was_for_others(pipe: tuple[int, int]) -> None:
    original = os.dup(pipe[1])
    open_lossy(pipe[1])
    assert fcntl.fcntl(original, fcntl.F_GETPIPE_SZ) == PIPE_SIZE
    assert os.get_blocking(original)
    assert not os.get_blocking(pipe[1])
    os.close(original)


def test_a_pipe_that_cannot_be_opened_again_is_looked_at_before_each_line(pipe: tuple[int, int]) -> None:
    """As one of another user's; the stream alone has no description of its own."""
    stream = LossyStream(pipe[1])
    fill(pipe[1])
    stream.write("nobody reads this\n")
    read_all(pipe[0])
    stream.write("here again\n")
    assert "1 log lines were dropped" in read_all(pipe[0])


def test_a_socket_is_not_waited_for_either() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = open_lossy(ours.fileno())
        for _ in range(5000):
            stream.write("x" * 1000 + "\n")
        theirs.setblocking(False)
        while read_some(theirs):
            continue
        stream.write("here again\n")
        assert theirs.recv(1 << 20).decode().endswith("dropped: nobody read them\nhere again\n")
        stream._socket.close()  # type: ignore[union-attr]


def read_some(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_a_reader_that_is_gone_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    open_lossy(write_end).write("nobody is there\n")
    os.close(write_end)


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as file:
        file.write("before\n")
        file.flush()
        open_lossy(file.fileno()).write("after\n")
    assert (tmp_path / "log").read_text() == "before\nafter\n"


def test_a_gateway_whose_log_nobody_reads_serves_swaps_and_replaces_workers(short_path: Path) -> None:
    """Its pipe is full before its first line."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    fill(write_end)
    registry = simulated("a", "b", pool={"workers_per_device": 1, "engine_args": {"tpot": "1ms", "activation": "1ms"}})
    gateway = {"host": "127.0.0.1", "port": 0, "admin_socket": str(short_path / "admin.sock")}
    file = short_path / "registry.yaml"
    file.write_text(yaml.safe_dump({**registry, "gateway": gateway, "scheduler": {"policy": "lru", "quantum": 0}}))
    command = [sys.executable, "-m", "gateway.cli", "serve", "--log-level", "debug", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=write_end, text=True, start_new_session=True)
    os.close(write_end)
    prism = Prism(process, short_path)
    prism.url = prism.wait_for_log("listening on ").split()[-1]
    for name in ("a", "b", "a", "b"):
        assert chat(prism, name, max_tokens=1).status == 200
    assert prism.get("/health") == {"status": "ok"}
    pid = prism.pid(0)
    os.kill(pid, 9)
    prism.wait_until(lambda s: s.workers[0].pid not in (None, pid), "the worker is replaced")
    assert chat(prism, "a", max_tokens=1).status == 200
    assert prism.stop() == 0
    prism.close()
    os.close(read_end)
