"""The releases that the engine `sglang` was tested with. Imports nothing, so that anybody may ask."""

from __future__ import annotations

SGLANG = ("0.5.17",)
KVCACHED = ("0.1.6",)
TORCH_MEMORY_SAVER = ("0.0.10",)
TORCH = ("2.11.0", "2.13.0")
"""The former on GPUs, the latter on the CPU."""
TRANSFORMERS = ("5.12.1",)

TORCH_CUDA = (13, 0)
"""Of the torch that `make gpu` installs: a driver must know it."""
