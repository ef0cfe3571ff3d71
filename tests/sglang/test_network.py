"""Nobody but the gateway can talk to a rank: it listens on no TCP port, its sockets lie in its user's own folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tests.rig.models import Stored
from tests.rig.sglang_models import NEEDS_SGLANG, Worker

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG, pytest.mark.asyncio(loop_scope="module")]

RANKS = """
import datetime, os, sys, psutil, torch, torch.distributed as dist
from enginepool.engines.sglang import groups

groups.keep_off_the_network()
rank, size, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
group = dist.new_group(list(range(size)), backend="gloo", timeout=datetime.timedelta(hours=2))
mine, all_of_it = torch.tensor([rank + 1.0]), [None] * size
dist.all_reduce(mine, group=group)
dist.broadcast(mine, 0, group=group)
dist.all_gather_object(all_of_it, {"rank": rank}, group=group)
dist.monitored_barrier(group, timeout=datetime.timedelta(minutes=1), wait_all_ranks=True)
ports = {it.laddr.ip for it in psutil.Process().net_connections("tcp") if it.status == "LISTEN"}
print(mine.item(), all_of_it, dist.get_backend(group), sorted(ports))
dist.barrier()
dist.destroy_process_group()
"""


def listening(process: psutil.Process) -> list[object]:
    return [it.laddr for it in process.net_connections("tcp") if it.status == psutil.CONN_LISTEN]


async def test_no_process_of_a_worker_listens_on_tcp(sglang_worker: Worker, sglang_stored: dict[str, Stored]) -> None:
    await sglang_worker.activate(sglang_stored["llama-tiny"])
    assert await sglang_worker.complete()
    processes = [sglang_worker.front, *sglang_worker.front.children(recursive=True)]
    assert len(processes) == 2
    assert [listening(it) for it in processes] == [[], []]
    await sglang_worker.park()
    await sglang_worker.blank()


async def test_its_sockets_lie_where_no_other_user_may_look(
    sglang_worker: Worker, sglang_stored: dict[str, Stored]
) -> None:
    await sglang_worker.activate(sglang_stored["llama-tiny"])
    bound = [it.laddr for it in sglang_worker.front.net_connections("unix") if str(it.laddr).startswith("/")]
    bound += [it.laddr for it in sglang_worker.rank.net_connections("unix") if str(it.laddr).startswith("/")]
    folders = {Path(str(it)).parent for it in bound}
    assert folders
    for folder in folders:
        found = folder.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.getuid(), 0o700), folder
    await sglang_worker.park()
    await sglang_worker.blank()


def run_ranks(size: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-c", RANKS]
        ranks = [
            subprocess.Popen([*command, str(rank), str(size), f"{folder}/group"], stdout=subprocess.PIPE, text=True)
            for rank in range(size)
        ]
        return [rank.communicate(timeout=120)[0].strip() for rank in ranks]


async def test_a_group_of_one_has_what_it_gives_and_listens_nowhere() -> None:
    assert run_ranks(1) == ["1.0 [{'rank': 0}] gloo []"]


async def test_a_group_of_two_meets_on_loopback() -> None:
    assert run_ranks(2) == ["3.0 [{'rank': 0}, {'rank': 1}] gloo ['127.0.0.1']"] * 2
