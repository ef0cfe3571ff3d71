"""The embedded engine: Hugging Face transformers on the CPU, with weights mapped read-only from host shared memory.

`engine` is the worker's side, on the event loop; `thread` runs `batch`, which executes one step after another.
"""

from __future__ import annotations

import os

# Before importing numpy, which would start OpenBLAS's threads: the template forks, and a fork does not copy threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from enginepool.engines.transformers.engine import TransformersEngine
from enginepool.engines.transformers.warm import warm

__all__ = ["TransformersEngine", "warm"]
