"""Weight segments: written once, read-only ever after, and gone with their last holder."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import psutil
import pytest

from config.errors import HostMemoryShort, StoreError
from enginepool.messages import SegmentRef
from enginepool.weights.segment import HeldSegment, adopt, create, open_segment

CONTENT = bytes(range(256)) * 16


def sealed(name: str = "m", content: bytes = CONTENT) -> HeldSegment:
    segment = create(name, len(content))
    with segment.view() as view:
        view[:] = content
    return segment.seal()


def mappings(name: str) -> list[str]:
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if f"memfd:prism-{name}" in line]


def holders(name: str) -> set[int]:
    """Processes with an open file of the segment."""
    found = set()
    for process in psutil.process_iter():
        try:
            files = list(Path(f"/proc/{process.pid}/fd").iterdir())
        except OSError:
            continue
        if any(f"memfd:prism-{name}" in _target(file) for file in files):
            found.add(process.pid)
    return found


def _target(file: Path) -> str:
    try:
        return os.readlink(file)
    except OSError:
        return ""


def test_what_was_written_is_read() -> None:
    with sealed() as held:
        mapped = open_segment(held.ref)
        with mapped.view() as view:
            assert bytes(view) == CONTENT
        mapped.close()


def test_a_mapping_is_read_only() -> None:
    with sealed("readonly") as held:
        mapped = open_segment(held.ref)
        with mapped.view() as view:
            assert view.readonly
        (line,) = mappings("readonly")
        assert line.split()[1] == "r--s"
        mapped.close()
    assert mappings("readonly") == []


def test_nobody_can_write_to_or_resize_a_sealed_segment() -> None:
    with sealed() as held:
        with pytest.raises(PermissionError):
            os.pwrite(held.ref.fd, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(held.ref.fd, 1)


def test_sealing_waits_for_nobody_who_still_writes() -> None:
    segment = create("busy", 4096)
    view = segment.view()
    with pytest.raises(StoreError, match="still in use"):
        segment.seal()
    view.release()
    segment.close()
    assert holders("busy") == set()


def test_unmapping_tells_when_a_view_is_still_in_use() -> None:
    with sealed() as held:
        mapped = open_segment(held.ref)
        view = mapped.view()
        with pytest.raises(StoreError, match="still in use"):
            mapped.close()
        view.release()
        mapped.close()
        mapped.close()


def test_an_error_while_it_is_written_is_what_its_writer_sees() -> None:
    """The error's own frames may hold a view."""

    def write() -> None:
        segment = create("half", len(CONTENT))
        try:
            view = segment.view()
            view[: len(CONTENT)] = b"too short"
        finally:
            segment.close()

    with pytest.raises(ValueError, match="different structures"):
        write()
    gc.collect()
    assert mappings("half") == []
    assert holders("half") == set()


def test_a_segment_has_no_name_in_any_file_system() -> None:
    before = set(os.listdir("/dev/shm"))
    with sealed():
        assert set(os.listdir("/dev/shm")) == before


def test_more_than_the_host_has_is_refused_with_the_sizes() -> None:
    with pytest.raises(HostMemoryShort, match=rf"huge: .*{2**60} bytes.*available"):
        create("huge", 2**60)


def test_a_model_name_of_any_length_will_do() -> None:
    create("ü" * 500, 4096).close()


def test_a_segment_that_is_gone_is_an_error() -> None:
    held = sealed()
    ref = held.ref
    held.close()
    with pytest.raises(StoreError, match="cannot open"):
        adopt(ref)


def test_only_sealed_segments_of_the_right_size_are_adopted(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file:
        file.write(b"x" * 4096)
        file.flush()
        with pytest.raises(StoreError, match="not a sealed segment"):
            adopt(SegmentRef(os.getpid(), file.fileno(), 4096))
    with sealed() as held, pytest.raises(StoreError, match="not a sealed segment"):
        adopt(SegmentRef(os.getpid(), held.ref.fd, held.nbytes + 1))


WRITER = """
import msgspec, sys
from enginepool.weights.segment import create
segment = create("crash", 4096)
with segment.view() as view:
    view[:5] = b"hello"
held = segment.seal()
print(msgspec.json.encode(held.ref).decode(), flush=True)
sys.stdin.read()
"""


def test_it_outlives_the_writers_kill_and_ends_with_its_last_holder() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        ref = msgspec.json.decode(writer.stdout.readline(), type=SegmentRef)
        assert holders("crash") == {writer.pid}
        held = adopt(ref)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert holders("crash") == {os.getpid()}
    mapped = open_segment(held.ref)
    with mapped.view() as view:
        assert bytes(view[:5]) == b"hello"
    mapped.close()
    held.close()
    assert holders("crash") == set()
