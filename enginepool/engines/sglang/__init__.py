"""The engine that serves with unmodified SGLang: its OpenAI layer in the worker, its Scheduler in a rank process.

`front` runs in the worker's own process, `rank` in the process with the Scheduler, `gpu` in a rank on a GPU, `loading`
in the loader of a model's first load. Modules used by several of them are here.

A request goes `front.engine` → `front.asgi` → SGLang's FastAPI application, supervised by `front.tokenizer` → `rank`,
and back through `front.detokenizer`. A `front.skeleton` is one model in the worker: its `layer` in the front and its
Scheduler in the rank, which `front.rank_process` starts. `upstream` adapts SGLang. Nothing may import SGLang before
`warm` has run.
"""

from __future__ import annotations

import os

# No threads in the template: it forks, and a fork does not copy threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from enginepool.engines.sglang.front.engine import SglangEngine
from enginepool.engines.sglang.warm import warm

__all__ = ["SglangEngine", "warm"]
