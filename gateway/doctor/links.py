"""The ways to a GPU: from host memory, over which models come in, and from other GPUs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.doctor.finding import Finding, ok, warning
from gateway.doctor.nvml import Facts, Gpu
from gateway.doctor.probe import Answer

_LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
"""GB/s of one lane by PCIe's generation: transfers a second by the line code's share (PCI Express specification)."""
_USUAL = 0.7
"""Of that, what copies should reach at least. An H200 on gen 5 x16 reaches 0.88."""
_SLOW = "has the slot fewer lanes, or do GPUs share a switch (nvidia-smi topo -m)? Models come in no faster than this"


def check_links(facts: Facts, measured: Answer) -> Iterator[Finding]:
    """A row for each GPU's link to host memory."""
    for number, gpu in enumerate(facts.gpus):
        device = f"cuda:{number}"
        yield _link(f"{device} link", gpu, measured.data.get(device, {"error": measured.failure}))


def check_nvlink(facts: Facts) -> Iterator[Finding]:
    """One row, if there is more than one GPU."""
    gpus = facts.gpus
    if len(gpus) < 2:
        return
    apart = [f"cuda:{n} and cuda:{m}" for n, gpu in enumerate(gpus) for m in gpu.unreachable if n < m]
    if apart:
        text = f"none between {'; '.join(apart[:4])}" + (f" and {len(apart) - 4} more pairs" if len(apart) > 4 else "")
        yield warning("NVLink", text, "models with tensor_parallel are slow across these; others do not use it")
    else:
        yield ok("NVLink", f"between all {len(gpus)} GPUs, {min(gpu.nvlinks for gpu in gpus)} links each")


def _link(check: str, gpu: Gpu, measured: Mapping[str, Any]) -> Finding:
    if "error" in measured:
        fix = "if CUDA says it is out of memory, the GPU is in use; otherwise nvidia-smi and dmesg say more"
        return warning(check, f"{_named(gpu)}; not measured: {measured['error']}", fix)
    rate = float(measured["gbps"])
    text = f"{_named(gpu)}; {rate:.1f} GB/s measured"
    if gpu.best_link and rate < _USUAL * _nominal(gpu.best_link):
        return warning(check, f"{text} of {_nominal(gpu.best_link):.0f} nominal", _SLOW)
    return ok(check, text)


def _nominal(link: tuple[int, int]) -> float:
    generation, lanes = link
    return _LANE.get(generation, 0.0) * lanes


def _named(gpu: Gpu) -> str:
    if gpu.link is None or gpu.best_link is None:
        return "PCIe of unknown speed"
    (generation, lanes), (best, most) = gpu.link, gpu.best_link
    return f"PCIe gen {generation} x{lanes}" + (f" (gen {best} x{most} at best)" if gpu.link != gpu.best_link else "")
