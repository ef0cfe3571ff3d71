"""Nobody but the gateway can talk to a rank: it listens on no TCP port, its sockets lie in its user's own folder."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import psutil
import pytest

from tests.rig.models import Stored
from tests.rig.sglang_models import NEEDS_SGLANG, Worker

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG, pytest.mark.asyncio(loop_scope="session")]


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
