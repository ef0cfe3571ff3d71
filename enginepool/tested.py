"""The upstream releases that the engine `sglang` was tested with. Imports nothing, so it can be imported anywhere."""

from __future__ import annotations

SGLANG = ("0.5.17",)
KVCACHED = ("0.1.6",)
TORCH_MEMORY_SAVER = ("0.0.10",)
TORCH = ("2.11.0", "2.13.0")
"""On GPUs and on the CPU."""
TRANSFORMERS = ("5.12.1",)

TORCH_CUDA = (13, 0)
"""CUDA version of the torch that `make gpu` installs, which the driver must support."""
