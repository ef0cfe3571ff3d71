"""Connecting to a forked child, on sockets of the test's own."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from enginepool.messages import FromLoader
from enginepool.pool.forks import Child, accept_from


@pytest.mark.parametrize("turns", range(5))
async def test_a_fork_given_up_as_its_child_connects_loses_no_socket(short_path: Path, turns: int) -> None:
    path = short_path / "child"
    child: Child[FromLoader] = Child("a child", silent_process())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        listener.setblocking(False)
        accepting = asyncio.create_task(accept_from(child, listener))
        for _ in range(5):  # until it waits
            await asyncio.sleep(0)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            for _ in range(turns):
                await asyncio.sleep(0)
            accepting.cancel()
            (accepted,) = await asyncio.gather(accepting, return_exceptions=True)
            if isinstance(accepted, socket.socket):
                accepted.close()
            else:
                assert isinstance(accepted, asyncio.CancelledError)
        await child.kill()
    os.unlink(path)


def silent_process() -> int:
    return os.posix_spawnp("sleep", ["sleep", "infinity"], os.environ, setpgroup=0)
