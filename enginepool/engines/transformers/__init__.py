"""The embedded engine: Hugging Face transformers on the CPU, weights mapped read-only from host shared memory.

`engine` is the worker's side of it, on the event loop; `thread` runs `batch`, which runs one step after another.
"""

from __future__ import annotations

import os

# Before numpy's import, which would start OpenBLAS's threads; the template forks, and a fork copies no thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from enginepool.engines.transformers.engine import TransformersEngine
from enginepool.engines.transformers.warm import warm

__all__ = ["TransformersEngine", "warm"]
