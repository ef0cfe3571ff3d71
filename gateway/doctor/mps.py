"""NVIDIA's Multi-Process Service, under which processes of one GPU compute at the same time instead of in turns."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from gateway.doctor.finding import Finding, ok, warning

CONTROL = "nvidia-cuda-mps-control"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
USUAL_PIPES = "/tmp/nvidia-mps"
"""Where CUDA looks if nobody says otherwise."""


def check_mps(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether there is a daemon to run, and whether somebody's already would take all processes here as clients."""
    yield _control(environment)
    pipes = Path(environment.get(PIPES) or USUAL_PIPES)
    if owner := _daemon(pipes):
        text = f"one runs ({owner}) with {pipes}: every CUDA process that looks there becomes its client"
        yield warning("MPS daemon", text, f"if it is not wanted: echo quit | {PIPES}={pipes} {CONTROL}")
    else:
        yield ok("MPS daemon", f"nobody's in {pipes}")


def _control(environment: Mapping[str, str]) -> Finding:
    if found := shutil.which(CONTROL, path=environment.get("PATH", os.defpath)):
        return ok("MPS", found)
    fix = (
        "it comes with the driver (Debian: apt-get install nvidia-cuda-mps); a container needs the capability `compute`"
    )
    return warning("MPS", f"no {CONTROL} on PATH: models on one GPU compute in turns", fix)


def _daemon(pipes: Path) -> str:
    """Whose it is that the daemon has left its number in its folder for; empty if that has ended."""
    try:
        pid = int((pipes / f"{CONTROL}.pid").read_text())
        process = psutil.Process(pid)
        # The kernel cuts names off.
        return f"pid {pid} of {process.username()}" if CONTROL.startswith(process.name()) else ""
    except (OSError, ValueError, psutil.Error):
        return ""
