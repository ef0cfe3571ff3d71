"""What `patches` has to say."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.doctor.finding import Finding, failed, ok
from gateway.doctor.probe import Answer


def check_loaded(answer: Answer) -> Iterator[Finding]:
    """That kvcached has patched SGLang, and that torch_memory_saver was loaded before everything else."""
    again = "to have it built anew: .venv/bin/pip uninstall kvcached, then `make gpu`"
    yield _row("kvcached loaded", "has patched SGLang", answer.failure or answer.data["kvcached"], again)
    preload = "ldd on that library names what it lacks; libcuda.so.1 is the driver's"
    yield _row("saver loaded", "by LD_PRELOAD", answer.failure or answer.data["saver"], preload)


def _row(check: str, text: str, fault: str, fix: str) -> Finding:
    return failed(check, fault, fix) if fault else ok(check, text)
