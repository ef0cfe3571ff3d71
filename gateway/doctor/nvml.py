"""What NVML knows of the GPUs that this process may see: `python -m gateway.doctor.nvml` prints it as JSON."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import pynvml

from config.gpus import VISIBLE, nvml_handle

T = TypeVar("T")


class Gpu(msgspec.Struct, frozen=True):
    """Sizes in bytes. What NVML does not tell of this GPU is None."""

    name: str
    memory: int
    used: int
    compute_mode: int | None
    mig: bool | None
    link: tuple[int, int] | None
    """PCIe's generation and lanes, now. An idle GPU may have lowered the former."""
    best_link: tuple[int, int] | None
    """The most that GPU and slot can do."""
    nvlinks: int
    """That are up."""
    unreachable: tuple[int, ...]
    """GPUs, by their place in `Facts.gpus`, whose memory it cannot read over NVLink."""


class Facts(msgspec.Struct, frozen=True):
    """gpus[N] is cuda:N."""

    gpus: tuple[Gpu, ...]


def read(environment: Mapping[str, str]) -> Facts:
    """Raises: pynvml.NVMLError."""
    pynvml.nvmlInit()
    try:
        handles = [nvml_handle(name) for name in _visible(environment)]
        return Facts(tuple(_gpu(place, handles) for place in range(len(handles))))
    finally:
        pynvml.nvmlShutdown()


def _visible(environment: Mapping[str, str]) -> Iterator[str]:
    listed = environment.get(VISIBLE)
    if listed is None:
        yield from map(str, range(pynvml.nvmlDeviceGetCount()))
    else:
        yield from (name for name in map(str.strip, listed.split(",")) if name)


def _gpu(place: int, handles: list[Any]) -> Gpu:
    handle = handles[place]
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    link = _if_told(lambda: _pair(handle, pynvml.nvmlDeviceGetCurrPcieLinkGeneration, "Curr"))
    best = _if_told(lambda: _pair(handle, pynvml.nvmlDeviceGetMaxPcieLinkGeneration, "Max"))
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        memory=int(memory.total),
        used=int(memory.used),
        compute_mode=_if_told(lambda: int(pynvml.nvmlDeviceGetComputeMode(handle))),
        mig=_if_told(lambda: bool(pynvml.nvmlDeviceGetMigMode(handle)[0])),
        link=link,
        best_link=best,
        nvlinks=_nvlinks(handle),
        unreachable=tuple(n for n, other in enumerate(handles) if n != place and not _reaches(handle, other)),
    )


def _pair(handle: Any, generation: Callable[[Any], int], which: str) -> tuple[int, int]:
    width: Callable[[Any], int] = getattr(pynvml, f"nvmlDeviceGet{which}PcieLinkWidth")
    return int(generation(handle)), int(width(handle))


def _nvlinks(handle: Any) -> int:
    up = 0
    for number in range(pynvml.NVML_NVLINK_MAX_LINKS):
        with suppress(pynvml.NVMLError):
            up += pynvml.nvmlDeviceGetNvLinkState(handle, number) == pynvml.NVML_FEATURE_ENABLED
    return up


def _reaches(handle: Any, other: Any) -> bool:
    index = pynvml.NVML_P2P_CAPS_INDEX_NVLINK
    status = _if_told(lambda: int(pynvml.nvmlDeviceGetP2PStatus(handle, other, index)))
    return status == int(pynvml.NVML_P2P_STATUS_OK)


def _if_told(question: Callable[[], T]) -> T | None:
    try:
        return question()
    except pynvml.NVMLError:
        return None


if __name__ == "__main__":
    print(msgspec.json.encode(read(os.environ)).decode())
