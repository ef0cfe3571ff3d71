"""What a container may use of the host's memory: cgroups of both versions, nested, and a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from enginepool.host import host_memory

GIB, MIB = 2**30, 2**20


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(host_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(host_memory, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_a_limit_the_machine_is_what_there_is(cgroups: Path) -> None:
    write(cgroups / "cgroup", memory__max="max")
    assert host_memory.total() == host_memory.machine() == host_memory.most()
    assert host_memory.available() <= psutil.virtual_memory().total


def test_a_container_of_version_2_has_its_own_root(cgroups: Path) -> None:
    write(cgroups / "cgroup", memory__max=GIB, memory__current=300 * MIB, memory__stat=f"anon 5\ninactive_file {MIB}")
    assert host_memory.total() == GIB
    assert host_memory.available() == GIB - 299 * MIB
    assert host_memory.room() == host_memory.available() - host_memory.RESERVE


def test_the_smallest_limit_above_a_nested_group_counts(cgroups: Path) -> None:
    write(cgroups, membership="0::/kube/pod/container")
    write(cgroups / "cgroup" / "kube", memory__max=GIB, memory__current=900 * MIB)
    write(cgroups / "cgroup" / "kube" / "pod", memory__max=2 * GIB, memory__current=MIB)
    write(cgroups / "cgroup" / "kube" / "pod" / "container", memory__max="max")
    assert host_memory.total() == GIB
    assert host_memory.available() == 124 * MIB


def test_version_1_mounted_with_other_controllers_counts(cgroups: Path) -> None:
    write(cgroups, membership="5:cpu,cpuacct:/x\n4:memory,hugetlb:/docker/abc\n0::/")
    limits = {"memory__limit_in_bytes": GIB, "memory__usage_in_bytes": 600 * MIB}
    stat = f"inactive_file 1\ntotal_inactive_file {100 * MIB}"
    write(cgroups / "cgroup" / "memory" / "docker" / "abc", **limits, memory__stat=stat)
    write(cgroups / "cgroup" / "memory", memory__limit_in_bytes=2**63 - 4096)
    assert host_memory.total() == GIB
    assert host_memory.available() == 524 * MIB


def test_a_group_that_has_more_than_its_limit_leaves_nothing(cgroups: Path) -> None:
    write(cgroups / "cgroup", memory__max=GIB, memory__current=2 * GIB)
    assert host_memory.available() == host_memory.room() == 0


LIMIT = 600 * MIB
REAL = next(
    (it for it in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")) if os.access(it / "cgroup.procs", os.W_OK)),
    None,
)


@pytest.fixture
def real_cgroup() -> Iterator[Path]:
    assert REAL is not None
    folder = REAL / f"prism-test-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        for name in ("memory.max", "memory.limit_in_bytes"):
            if (folder / name).exists():
                (folder / name).write_text(str(LIMIT))
        yield folder
    finally:
        folder.rmdir()


@pytest.mark.skipif(REAL is None, reason="making a cgroup takes root")
def test_a_segment_that_would_burst_a_real_cgroup_is_refused_and_one_that_does_not_is_made(real_cgroup: Path) -> None:
    if not any((real_cgroup / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
        pytest.skip("the controller of memory is not on for this cgroup's children")
    code = f"""
import os
from config.errors import HostMemoryShort
from enginepool.host import host_memory
from enginepool.weights import segment
open({str(real_cgroup / "cgroup.procs")!r}, "w").write(str(os.getpid()))
print(host_memory.total())
segment.create("fits", {100 * MIB}).close()
try:
    segment.create("large", {LIMIT - 10 * MIB})
except HostMemoryShort as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    total, refused = done.stdout.splitlines()
    assert int(total) == LIMIT
    assert refused.startswith(f"large: the weights need {LIMIT - 10 * MIB} bytes of host memory")
