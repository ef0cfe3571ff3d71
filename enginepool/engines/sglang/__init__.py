"""The engine that serves with SGLang, unmodified: its own OpenAI layer here, its Scheduler in a rank process.

A request goes `engine` → `asgi` → SGLang's FastAPI application, with `tokenizer` watching over it → `rank`, and back
through `detokenizer`. A `skeleton` is one model in the worker: its `layer` in the front, its Scheduler in the rank,
which `rank_process` starts. `upstream` has what we adapt in SGLang. Nothing imports SGLang before `warm` has run.
"""

from __future__ import annotations

import os

# The template forks, and a fork copies no thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from enginepool.engines.sglang.engine import SglangEngine
from enginepool.engines.sglang.warm import warm

__all__ = ["SglangEngine", "warm"]
