"""The worker's model: blank, parked (a skeleton) or active (a skeleton with its segment mapped)."""

from __future__ import annotations

import gc
import traceback

from config.errors import EngineError, StoreError
from enginepool.engines.phases import Phases
from enginepool.engines.transformers.skeleton import TransformersSkeleton
from enginepool.messages import Manifest, ModelSpec, SegmentRef
from enginepool.weights.layout import base_tensor, checksum, name_at
from enginepool.weights.segment import MappedSegment, open_segment


class ModelSlot:
    def __init__(self) -> None:
        self._skeleton: TransformersSkeleton | None = None
        self._mapped: MappedSegment | None = None

    @property
    def active(self) -> TransformersSkeleton | None:
        return self._skeleton if self._mapped is not None else None

    def activate(self, spec: ModelSpec, manifest: Manifest, segment: SegmentRef, verify: bool) -> dict[str, float]:
        """Make `spec` active; returns seconds by phase. After an error the slot is blank.

        Raises:
            EngineError: the model cannot be built, or the manifest does not match it.
            StoreError: the segment cannot be mapped, or a checksum is wrong.
        """
        phases = Phases()
        try:
            self._reuse(spec)
            self._mapped = open_segment(segment)
            phases.end("map")
            if verify:
                _verify(manifest, self._mapped)
                phases.end("verify")
            skeleton = self._skeleton or self._build(spec, phases)
            skeleton.attach(manifest, self._mapped.view())
            phases.end("assign")
        except (EngineError, StoreError) as error:
            # The traceback's frames hold views of the segment, which could otherwise not be unmapped.
            traceback.clear_frames(error.__traceback__)
            self.blank()
            raise
        return phases.seconds

    def park(self) -> str:
        """Unmap the weights; returns the model's name.

        Raises:
            EngineError: nothing is active.
            StoreError: something still uses the weights.
        """
        if self._skeleton is None:
            raise EngineError("no model to park")
        self._detach()
        return self._skeleton.spec.name

    def blank(self) -> None:
        """Drop the model completely."""
        self._detach()
        self._skeleton = None
        gc.collect()

    def _reuse(self, spec: ModelSpec) -> None:
        """Keep the parked skeleton only if it is of exactly this model. Raises: EngineError if a model is active."""
        if self._mapped is not None:
            raise EngineError(f"{spec.name}: another model is active")
        if self._skeleton is not None and self._skeleton.spec != spec:
            self.blank()

    def _build(self, spec: ModelSpec, phases: Phases) -> TransformersSkeleton:
        self._skeleton = skeleton = TransformersSkeleton(spec)
        phases.end("skeleton")
        skeleton.load_tokenizer()
        phases.end("tokenizer")
        return skeleton

    def _detach(self) -> None:
        if self._skeleton is not None:
            self._skeleton.detach()
        if self._mapped is not None:
            self._mapped.close()
            self._mapped = None


def _verify(manifest: Manifest, mapped: MappedSegment) -> None:
    flat = base_tensor(mapped.view())
    for block in manifest.blocks:
        if checksum(flat, block) != block.crc32:
            name = name_at(manifest.tensors, block)
            raise StoreError(f"{manifest.model}: the checksum of {name} is wrong in host memory")
