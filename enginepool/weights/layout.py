"""The layout of tensors in a segment: computing it, writing and checksumming.

Tensors that overlap in memory (tied weights, views, transposed weights) keep their relative positions: the bytes they
cover together form one block that is copied once.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from config.errors import StoreError
from enginepool.messages import Block, TensorKind, TensorSpec

PIECE = 64 * 2**20
"""Bytes copied or checksummed at a time."""


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor to be stored."""

    name: str
    tensor: Tensor
    kind: TensorKind


@dataclass(slots=True)
class _Range:
    """A contiguous byte range of one storage that tensors cover."""

    storage: torch.UntypedStorage
    start: int
    end: int
    offset: int = 0
    """Position in the segment, in bytes."""

    def pieces(self) -> Iterator[Tensor]:
        for start in range(self.start, self.end, PIECE):
            size = min(PIECE, self.end - start)
            yield torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage, start, (size,), (1,))


class Layout:
    """Assigns positions to `entries`; blocks begin at multiples of `alignment` bytes, as in their original memory."""

    def __init__(self, entries: Iterable[NamedTensor], alignment: int) -> None:
        """Compute the layout.

        Raises:
            StoreError: a tensor has no plain memory.
        """
        self._alignment = alignment
        self._entries = list(entries)
        self._ranges: dict[int, list[_Range]] = {}
        for entry in self._entries:
            self._cover(entry)
        self.nbytes = 0
        for ranges in self._ranges.values():
            self._join(ranges)
            for it in ranges:
                it.offset = self.nbytes
                self.nbytes += _up(it.end - it.start, alignment)

    def write(self, view: memoryview, wrote: Callable[[int], None], threads: int) -> tuple[Block, ...]:
        """Copy all blocks into the segment with `threads` threads; `wrote` is called with the bytes of each."""
        flat, blocks = np.frombuffer(view, dtype=np.uint8), []
        with ThreadPoolExecutor(threads, "writing") as pool:
            for block in pool.map(lambda it: _write(it, flat), chain.from_iterable(self._ranges.values())):
                blocks.append(block)
                wrote(block.nbytes)
        return tuple(blocks)

    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(self._spec(entry) for entry in self._entries)

    def _cover(self, entry: NamedTensor) -> None:
        tensor = entry.tensor
        if tensor.layout != torch.strided or tensor.is_meta or is_traceable_wrapper_subclass(tensor):
            raise StoreError(f"{entry.name} is a {type(tensor).__name__} without plain memory: not supported")
        if tensor.numel() > 0:
            storage = tensor.untyped_storage()
            start, end = _span(tensor)
            start -= start % self._alignment
            self._ranges.setdefault(storage.data_ptr(), []).append(_Range(storage, start, end))

    def _join(self, ranges: list[_Range]) -> None:
        """Merge overlapping ranges."""
        ranges.sort(key=lambda it: (it.start, it.end))
        joined = [ranges[0]]
        for it in ranges[1:]:
            if it.start < joined[-1].end:
                joined[-1].end = max(joined[-1].end, it.end)
            else:
                joined.append(it)
        ranges[:] = joined

    def _spec(self, entry: NamedTensor) -> TensorSpec:
        tensor = entry.tensor
        return TensorSpec(
            name=entry.name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            offset=self._offset(tensor),
            nbytes=tensor.nbytes,
            kind=entry.kind,
            stride=() if tensor.is_contiguous() else tensor.stride(),
        )

    def _offset(self, tensor: Tensor) -> int:
        if tensor.numel() == 0:
            return 0
        start, _ = _span(tensor)
        ranges = self._ranges[tensor.untyped_storage().data_ptr()]
        (found,) = (it for it in ranges if it.start <= start < it.end)
        return found.offset + start - found.start


def base_tensor(view: memoryview) -> Tensor:
    """The whole segment as a uint8 tensor. It and all tensors viewed from it keep `view` alive."""
    with warnings.catch_warnings():
        # torch warns that the memory is read-only, which is intended: nothing may write to shared weights.
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(view, dtype=torch.uint8)


def view_of(flat: Tensor, spec: TensorSpec) -> Tensor:
    """A tensor of the segment `flat`, as a view."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    stride = spec.stride or torch.empty(spec.shape, device="meta").stride()
    tensor = torch.empty(0, dtype=dtype, device=flat.device)
    offset = flat.storage_offset() + spec.offset
    return tensor.set_(flat.untyped_storage(), offset // dtype.itemsize, spec.shape, stride)


def checksum(flat: Tensor, block: Block) -> int:
    """The CRC-32 of the block in `flat`, which may be on any device."""
    found, end = 0, block.offset + block.nbytes
    for start in range(block.offset, end, PIECE):
        found = zlib.crc32(_bytes_of(flat[start : min(start + PIECE, end)]), found)
    return found


def name_at(tensors: Iterable[TensorSpec], block: Block) -> str:
    """The name of a tensor in the block, for error messages."""
    end = block.offset + block.nbytes
    return next(it.name for it in tensors if it.nbytes > 0 and block.offset <= it.offset < end)


def _write(source: _Range, flat: npt.NDArray[np.uint8]) -> Block:
    """Copy and checksum one block. Both release the GIL, so that several threads can do this concurrently."""
    crc32, at = 0, source.offset
    for piece in source.pieces():
        data = _bytes_of(piece)
        flat[at : at + len(data)] = np.frombuffer(data, dtype=np.uint8)
        crc32 = zlib.crc32(data, crc32)
        at += len(data)
    return Block(source.offset, source.end - source.start, crc32)


def _bytes_of(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.cpu().numpy().data
    return data


def _span(tensor: Tensor) -> tuple[int, int]:
    """Start and end (exclusive) of a tensor in its storage, in bytes."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.itemsize, (start + last + 1) * tensor.itemsize


def _up(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment
