"""Where tensors go in a segment, and how they are put there and checked.

Tensors that overlap in memory (tied weights, views, transposed weights) keep their places to each other: the bytes that
they cover together are one block, copied once.
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
"""Bytes that are copied or checked at a time."""


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """One tensor that is to be stored."""

    name: str
    tensor: Tensor
    kind: TensorKind


@dataclass(slots=True)
class _Range:
    """Bytes of one storage that tensors cover without a gap."""

    storage: torch.UntypedStorage
    start: int
    end: int
    offset: int = 0
    """In the segment."""

    def pieces(self) -> Iterator[Tensor]:
        for start in range(self.start, self.end, PIECE):
            size = min(PIECE, self.end - start)
            yield torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage, start, (size,), (1,))


class Layout:
    """Places `entries`; every block begins at a multiple of `alignment` bytes, as its memory did before."""

    def __init__(self, entries: Iterable[NamedTensor], alignment: int) -> None:
        """
        Raises:
            StoreError: a tensor is of a kind that has no plain memory.
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
        """Copy every block into the segment, some at a time; `wrote` is told the bytes of each."""
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
        """Make one of those that overlap."""
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
    """The whole segment as bytes. Keeps `view` alive, and so do all tensors viewed from it."""
    with warnings.catch_warnings():
        # torch warns that the memory is read-only. It is meant to be: nothing may write to shared weights.
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(view, dtype=torch.uint8)


def view_of(flat: Tensor, spec: TensorSpec) -> Tensor:
    """One tensor of the segment whose bytes `flat` holds, without a copy."""
    dtype: torch.dtype = getattr(torch, spec.dtype)
    stride = spec.stride or torch.empty(spec.shape, device="meta").stride()
    tensor = torch.empty(0, dtype=dtype, device=flat.device)
    offset = flat.storage_offset() + spec.offset
    return tensor.set_(flat.untyped_storage(), offset // dtype.itemsize, spec.shape, stride)


def checksum(flat: Tensor, block: Block) -> int:
    """The block's CRC-32 in `flat`, on whatever device that is."""
    found, end = 0, block.offset + block.nbytes
    for start in range(block.offset, end, PIECE):
        found = zlib.crc32(_bytes_of(flat[start : min(start + PIECE, end)]), found)
    return found


def name_at(tensors: Iterable[TensorSpec], block: Block) -> str:
    """A tensor that lies in the block, for messages."""
    end = block.offset + block.nbytes
    return next(it.name for it in tensors if it.nbytes > 0 and block.offset <= it.offset < end)


def _write(source: _Range, flat: npt.NDArray[np.uint8]) -> Block:
    """In one thread; neither the copy nor the checksum holds up the others."""
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
    """First and last byte of a tensor in its storage, the last exclusive."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.itemsize, (start + last + 1) * tensor.itemsize


def _up(nbytes: int, alignment: int) -> int:
    return -(-nbytes // alignment) * alignment
