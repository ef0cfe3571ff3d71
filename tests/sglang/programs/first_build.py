"""What a rank still imports of SGLang while it builds its first model.

`first_build FOLDER` prints the modules' names as JSON, which a rank tells.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop

from enginepool.engines.sglang import SglangEngine
from enginepool.engines.sglang.protocol import StartRank
from enginepool.messages import Manifest, ModelSpec, SegmentRef

MAX_RUNNING = 2
POOL = 2**26
"""Bytes."""


def load(model: ModelSpec, parent: Connection) -> None:
    """In a child: what loading imports must not be there when the rank is forked."""
    from enginepool.engines.sglang.loading import weights

    manifest, held = weights.load(model, lambda done, total: None, max_running=MAX_RUNNING, device="cpu")
    with held:
        parent.send((manifest, held.ref))
        parent.recv()


def tell_imports(told: Path) -> None:
    """Have ranks that are forked later write there what they have imported since the command to build."""
    from enginepool.engines.sglang.rank import main

    arguments, describe = main._arguments, main._describe_built
    before: set[str] = set()

    def note(*given: Any) -> Any:
        before.update(sys.modules)
        return arguments(*given)

    def tell(*given: Any) -> Any:
        imported = sys.modules.keys() - before
        told.write_text(json.dumps(sorted(name for name in imported if name.startswith("sglang."))))
        return describe(*given)

    main._arguments, main._describe_built = note, tell


async def build(model: ModelSpec, manifest: Manifest, segment: SegmentRef) -> None:
    engine = SglangEngine(lambda output: None, StartRank("cpu", 1, MAX_RUNNING, POOL))
    await engine.start()
    await engine.activate(model, manifest, segment, verify=False)
    await engine.close()


def main(folder: str) -> None:
    model = ModelSpec("m", folder, "float32", {})
    forking = multiprocessing.get_context("fork")
    parent, child = forking.Pipe()
    loader = forking.Process(target=load, args=(model, child))
    loader.start()
    manifest, segment = parent.recv()
    with tempfile.TemporaryDirectory() as shared:
        told = Path(shared, "imports")
        tell_imports(told)
        uvloop.run(build(model, manifest, segment))
        print(told.read_text())
    parent.send(None)
    loader.join()
