"""Where everything lies."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VENV = PROJECT / ".venv"
PYTHON = VENV / "bin" / "python"
TOOLKIT = VENV / "cuda"
"""`enginepool/host/gpu_environment.py` gives it to the processes that serve."""
STAMP = VENV / ".gpu"
"""Is there if all of an installation has succeeded; the Makefile then leaves the packages of `.venv` alone."""
PINS = PROJECT / "requirements" / "gpu.txt"
KVCACHED = PROJECT / "requirements" / "kvcached.txt"
