"""A calibration: the costs of steps, activations and evictions on one kind of GPU, and the source of each number.

Costs are functions of a model's shape and size, so models that were never measured can be simulated too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from simulator.errors import StudyError

NotNegative = Annotated[float, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
Text = Annotated[str, Meta(min_length=1)]

H200 = Path(__file__).with_name("h200.json")


class CalibrationEntry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fields common to all entries."""

    measured: bool
    """Whether the entry was measured; otherwise it is an assumption."""
    source: Text


class PrefillCost(CalibrationEntry, frozen=True):
    """A prefill step takes the longer of launching its kernels and doing its arithmetic."""

    seconds_per_layer: NotNegative
    """Seconds to launch a layer's kernels, whatever the number of tokens."""
    flops_per_s: Positive
    """Speed of the linear layers."""
    attention_flops_per_s: Positive


class DecodeCost(CalibrationEntry, frozen=True):
    """A decode step takes the sum of these terms; attention takes the longer of its two terms."""

    seconds_per_layer: NotNegative
    """Fixed seconds per layer, whatever the batch size."""
    seconds_per_request: NotNegative
    weight_bytes_per_s: Positive
    """Rate of reading weights."""
    kv_bytes_per_s: Positive
    """Rate of reading the KV cache of a batch that keeps the whole GPU busy."""
    longest_kv_bytes_per_s: Positive
    """Rate of reading the batch's longest context. SGLang's Triton kernel splits a context into 8 pieces at most, so
    only few blocks read it, even while the others are idle."""


class DecodeHostCost(CalibrationEntry, frozen=True):
    """Host time of a decode step: a lower bound for the step, since it overlaps with the GPU's work."""

    seconds: NotNegative
    seconds_per_request: NotNegative
    seconds_beside: NotNegative
    """Additional seconds if other workers of the device have a model, busy or not."""


class PrefillHostCost(CalibrationEntry, frozen=True):
    seconds: NotNegative
    """Host time of each prefill step on top of its kernels; the engine decodes nothing meanwhile."""


class FrontCost(CalibrationEntry, frozen=True):
    """The way from the gateway to the engine and back; it delays a request but occupies no resource."""

    seconds: NotNegative
    seconds_per_token: NotNegative
    """Additional seconds per prompt token."""


class TimeSlicing(CalibrationEntry, frozen=True):
    """Without MPS, busy engines use their GPU in turns, one time slice each."""

    slice_seconds: Positive
    switch_seconds: NotNegative
    launch_per_neighbour: NotNegative
    """Relative slowdown of launching a prefill's kernels, per busy engine on the same GPU."""


class MpsSharing(CalibrationEntry, frozen=True):
    """With MPS, each layer of an engine waits for one layer of every other busy engine of its GPU."""

    wait_share: NotNegative
    """Share of the time the other's layer keeps the GPU busy that is spent waiting for it."""
    launch_per_neighbour: NotNegative


class TensorParallelCost(CalibrationEntry, frozen=True):
    seconds_per_layer: NotNegative
    """Seconds per layer that devices serving one model together exchange data, in every step."""


class Transfer(CalibrationEntry, frozen=True):
    """Something that takes a fixed time plus a time per byte of weights."""

    seconds: NotNegative
    bytes_per_s: Positive

    def duration(self, nbytes: int) -> float:
        """Seconds for `nbytes` of weights."""
        return self.seconds + nbytes / self.bytes_per_s


class Pause(CalibrationEntry, frozen=True):
    seconds: NotNegative


class HeldMemory(CalibrationEntry, frozen=True):
    """Device memory of a worker besides weights and elastic KV cache."""

    blank_bytes: Annotated[int, Meta(ge=0)]
    parked_bytes: Annotated[int, Meta(ge=0)]
    bytes: NotNegative
    """Maximum while a model is active, without the part that grows with its weights."""
    bytes_per_weight_byte: NotNegative

    def with_model(self, weight_bytes: int) -> int:
        """Bytes held while a model with `weight_bytes` of weights is active."""
        return round(self.bytes + self.bytes_per_weight_byte * weight_bytes)


class KvPages(CalibrationEntry, frozen=True):
    bytes: Annotated[int, Meta(gt=0)]
    """Bytes mapped at a time for each of a model's KV buffers."""


class PrefillChunk(CalibrationEntry, frozen=True):
    tokens: Annotated[int, Meta(ge=1)]
    """Maximum number of prompt tokens per prefill step."""


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    machine: Text
    memory_bytes: Annotated[int, Meta(gt=0)]
    """The GPU's total memory."""
    prefill: PrefillCost
    decode: DecodeCost
    decode_host: DecodeHostCost
    prefill_host: PrefillHostCost
    front: FrontCost
    time_slices: TimeSlicing
    mps: MpsSharing
    tensor_parallel: TensorParallelCost
    parked: Transfer
    """Activating a parked model whose weights are in host memory."""
    blank: Transfer
    """Activating a model in a blank worker, weights in host memory."""
    disk: Transfer
    """Loading weights from disk into host memory."""
    first_use: Transfer
    """Additional time of the first prefill of a model in a process."""
    park: Pause
    """From active to parked; independent of the model's size."""
    teardown: Pause
    """From parked to blank, by tearing the engine down."""
    start: Pause
    """From the fork of a new process to a blank worker."""
    limit: Pause
    """From the end of a step until a new KV limit takes effect."""
    held: HeldMemory
    kv_pages: KvPages
    chunk: PrefillChunk

    @property
    def assumptions(self) -> list[str]:
        """Names of the entries that were not measured."""
        entries = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [name for name, entry in entries if isinstance(entry, CalibrationEntry) and not entry.measured]


def read_calibration(path: Path = H200) -> Calibration:
    """Read a calibration from JSON.

    Raises:
        StudyError: it cannot be read, or an entry is missing, unknown or out of range; the message names it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a calibration: {error}") from error
