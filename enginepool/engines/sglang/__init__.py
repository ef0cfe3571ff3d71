"""The engine that serves with SGLang, unmodified: its own OpenAI layer here, its Scheduler in a rank process.

`front` is the worker's own process, `rank` the one with the Scheduler, `gpu` what a rank has on a GPU only, `loading`
the process of a model's first load; what more than one of them needs lies here.

A request goes `front.engine` → `front.asgi` → SGLang's FastAPI application, with `front.tokenizer` watching over it →
`rank`, and back through `front.detokenizer`. A `front.skeleton` is one model in the worker: its `layer` in the front,
its Scheduler in the rank, which `front.rank_process` starts. `upstream` has what we adapt in SGLang. Nothing imports
SGLang before `warm` has run.
"""

from __future__ import annotations

import os

# The template forks, and a fork copies no thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from enginepool.engines.sglang.front.engine import SglangEngine
from enginepool.engines.sglang.warm import warm

__all__ = ["SglangEngine", "warm"]
