"""A calibration: what steps, activations and evictions cost on one kind of GPU, and where each number comes from.

Costs are functions of a model's shape and size, so that models that were never measured can be simulated.
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


class Entry(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all entries say of themselves."""

    measured: bool
    """Whether it was, here; else it is an assumption."""
    source: Text


class Prefill(Entry, frozen=True):
    """A step takes as long as its kernels take to be launched, or as its arithmetic: whichever is longer."""

    seconds_per_layer: NotNegative
    """Of launching, however few the tokens."""
    flops_per_s: Positive
    """Of the linear layers."""
    attention_flops_per_s: Positive


class Decode(Entry, frozen=True):
    """A step is the sum of these, but that attention takes the longer of its two."""

    seconds_per_layer: NotNegative
    """Of a step, however small its batch."""
    seconds_per_request: NotNegative
    weight_bytes_per_s: Positive
    """At which weights are read, and the KV cache of a batch that keeps the GPU busy:"""
    kv_bytes_per_s: Positive
    longest_kv_bytes_per_s: Positive
    """At which the batch's longest context is read. SGLang's Triton kernel cuts a context into 8 pieces at most: few
    blocks read it, however many others have nothing left to do."""


class DecodeHost(Entry, frozen=True):
    """A worker's processes need so long for a decode step, whatever its GPU does meanwhile: it takes no less."""

    seconds: NotNegative
    seconds_per_request: NotNegative
    seconds_beside: NotNegative
    """More, where other workers of the device have a model, busy or not."""


class PrefillHost(Entry, frozen=True):
    seconds: NotNegative
    """Of a worker's engine for each prefill step, besides its kernels: it decodes nothing meanwhile."""


class Front(Entry, frozen=True):
    """The way to the engine and back, which keeps nobody else from anything."""

    seconds: NotNegative
    """Of a request, and more for each token of its prompt:"""
    seconds_per_token: NotNegative


class TimeSlices(Entry, frozen=True):
    """How busy engines of a GPU share it without MPS: in turns."""

    slice_seconds: Positive
    switch_seconds: NotNegative
    launch_per_neighbour: NotNegative
    """Launching a prefill's kernels takes 1 + this times as long for each busy neighbour."""


class Mps(Entry, frozen=True):
    """How busy engines of a GPU share it with MPS: a layer waits for a layer of each other."""

    wait_share: NotNegative
    """Of the time that the other's layer keeps the GPU busy."""
    launch_per_neighbour: NotNegative


class TensorParallel(Entry, frozen=True):
    seconds_per_layer: NotNegative
    """Of a step of a model on several devices: for each of its layers they exchange what they have."""


class Transfer(Entry, frozen=True):
    """What takes a while, and then so much for each byte of weights."""

    seconds: NotNegative
    bytes_per_s: Positive

    def duration(self, nbytes: int) -> float:
        """Seconds."""
        return self.seconds + nbytes / self.bytes_per_s


class Pause(Entry, frozen=True):
    seconds: NotNegative


class Held(Entry, frozen=True):
    """What a worker has on its device besides weights and elastic KV cache."""

    blank_bytes: Annotated[int, Meta(ge=0)]
    parked_bytes: Annotated[int, Meta(ge=0)]
    bytes: NotNegative
    """The most while a model is active, which is what the ledger counts on from then on."""
    bytes_per_weight_byte: NotNegative

    def with_model(self, weight_bytes: int) -> int:
        """Bytes."""
        return round(self.bytes + self.bytes_per_weight_byte * weight_bytes)


class KvPages(Entry, frozen=True):
    bytes: Annotated[int, Meta(gt=0)]
    """That are mapped at a time for each of a model's KV buffers."""


class Chunk(Entry, frozen=True):
    tokens: Annotated[int, Meta(ge=1)]
    """Of prompts that one prefill step takes."""


class Calibration(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    machine: Text
    memory_bytes: Annotated[int, Meta(gt=0)]
    """Of the whole GPU."""
    prefill: Prefill
    decode: Decode
    decode_host: DecodeHost
    prefill_host: PrefillHost
    front: Front
    time_slices: TimeSlices
    mps: Mps
    tensor_parallel: TensorParallel
    parked: Transfer
    """Activations by the state they begin in, weights in host memory; `disk` is what brings them there."""
    blank: Transfer
    disk: Transfer
    first_use: Transfer
    """What the first prefill of a model in a process takes beyond later ones."""
    park: Pause
    """From active to parked: as long for a large model as for a small one."""
    teardown: Pause
    """From parked to blank."""
    start: Pause
    """From a new process to blank."""
    limit: Pause
    """From the end of a step to a KV limit that holds."""
    held: Held
    kv_pages: KvPages
    chunk: Chunk

    @property
    def assumptions(self) -> list[str]:
        """Names of the entries that were not measured."""
        entries = ((name, getattr(self, name)) for name in self.__struct_fields__)
        return [name for name, entry in entries if isinstance(entry, Entry) and not entry.measured]


def read_calibration(path: Path = H200) -> Calibration:
    """
    Raises:
        StudyError: it cannot be read, or an entry is missing, unknown or out of range; the text names it.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a calibration: {error}") from error
