"""A group of ranks: `group SIZE` prints what each of them was told by the others, and where it listens, as JSON."""

from __future__ import annotations

import datetime
import json
import tempfile
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import psutil
import torch
import torch.distributed as dist

from enginepool.engines.sglang import groups


def take_part(rank: int, size: int, file: str, told: Connection) -> None:
    groups.keep_off_the_network()
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    group = dist.new_group(list(range(size)), backend="gloo", timeout=datetime.timedelta(hours=2))
    mine = torch.tensor([rank + 1.0])
    all_of_it: list[Any] = [None] * size
    dist.all_reduce(mine, group=group)
    dist.broadcast(mine, 0, group=group)
    dist.all_gather_object(all_of_it, {"rank": rank}, group=group)
    dist.monitored_barrier(group, timeout=datetime.timedelta(minutes=1), wait_all_ranks=True)
    ports = {it.laddr.ip for it in psutil.Process().net_connections("tcp") if it.status == psutil.CONN_LISTEN}
    told.send([mine.item(), all_of_it, dist.get_backend(group), sorted(ports)])
    dist.barrier()
    dist.destroy_process_group()


def main(size: str) -> None:
    forking = get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [forking.Pipe() for _ in range(int(size))]
        ranks = [
            forking.Process(target=take_part, args=(rank, len(pipes), f"{folder}/group", theirs))
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for rank in ranks:
            rank.start()
        print(json.dumps([ours.recv() for ours, _ in pipes]))
        for rank in ranks:
            rank.join()
