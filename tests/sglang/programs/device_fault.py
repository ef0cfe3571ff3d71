"""A worker's front and rank whose GPU fails, as far as a CPU can play that.

`device_fault FOLDER WHERE TEXT` serves the model of FOLDER, and CUDA says TEXT while it is built or serves (WHERE).
Exits as a worker does.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from enginepool.engines.sglang import SglangEngine
from enginepool.engines.sglang.protocol import StartRank
from enginepool.messages import Manifest, ModelSpec, SegmentRef
from enginepool.process import die_with_parent
from tests.sglang.programs.first_build import MAX_RUNNING, POOL, load


def fail(where: str, text: str) -> None:
    """Have ranks that are forked later do so."""
    from enginepool.engines.sglang.rank import commands, main

    def raise_it(*given: Any) -> Any:
        raise RuntimeError(f"CUDA error: {text}\nCUDA kernel errors might be asynchronously reported.")

    if where == "building":
        main._build = raise_it
    else:
        commands.Serving.between_steps = raise_it  # type: ignore[method-assign]


def load_and_hold(parent: int, model: ModelSpec, connection: Connection) -> None:
    """The weights, until the worker has ended."""
    die_with_parent(parent)
    load(model, connection)


async def serve(model: ModelSpec, manifest: Manifest, segment: SegmentRef) -> None:
    engine = SglangEngine(lambda output: None, StartRank("cpu", 1, MAX_RUNNING, POOL))
    await engine.start()
    await engine.activate(model, manifest, segment, verify=False)
    await asyncio.Event().wait()


def main(folder: str, where: str, text: str) -> None:
    model = ModelSpec("m", folder, "float32", {})
    forking = multiprocessing.get_context("fork")
    parent, child = forking.Pipe()
    forking.Process(target=load_and_hold, args=(os.getpid(), model, child)).start()
    manifest, segment = parent.recv()
    fail(where, text)
    uvloop.run(serve(model, manifest, segment))
