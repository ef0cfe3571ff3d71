"""Paths of the installation."""

from __future__ import annotations

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VENV = PROJECT / ".venv"
PYTHON = VENV / "bin" / "python"
TOOLKIT = VENV / "cuda"
"""`enginepool/host/gpu_environment.py` points serving processes to it."""
STAMP = VENV / ".gpu"
"""Exists once an installation has succeeded completely; the Makefile then leaves the packages in `.venv` alone."""
PINS = PROJECT / "requirements" / "gpu.txt"
KVCACHED = PROJECT / "requirements" / "kvcached.txt"
