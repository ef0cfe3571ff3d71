"""An activation's weights: a model made without memory, whose tensors become views of one that is filled at once.

What SGLang does after loading has been done when the segment was written, and is not done again. The objects that it
needs besides tensors (MoE runners, kernels) it makes when the model is made.

To be imported after `warm` only.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from sglang.srt.model_loader.loader import BaseModelLoader
from torch import nn

from config.errors import EngineError, StoreError
from enginepool.engines.phases import Phases
from enginepool.engines.sglang.building import initialise
from enginepool.engines.sglang.protocol import Weights
from enginepool.engines.sglang.rank.device import RankDevice
from enginepool.engines.sglang.tensors import Walk, unpack
from enginepool.messages import Manifest
from enginepool.weights.layout import checksum, name_at, view_of

log = logging.getLogger("prism.rank")


class StoredWeights:
    """One model's weights in this rank. `flat` is all their memory, and stays the same while the model is there."""

    def __init__(self, manifest: Manifest, device: RankDevice) -> None:
        self._manifest = manifest
        self._device = device
        self.flat = device.allocate(manifest.nbytes)

    def watch(self) -> weakref.ref[Any]:
        """Dead once the memory is free again."""
        return weakref.ref(self.flat.untyped_storage())

    def attach(self, model: nn.Module) -> None:
        """Make every tensor of `model` a view of `flat`, and set what loading would have changed.

        Raises:
            EngineError: the model is not the one that was stored.
        """
        manifest, walk = self._manifest, Walk(model)
        stored = {spec.name for spec in manifest.tensors}
        gone = [name for name in walk.tensors if name not in stored and name not in manifest.values]
        for spec in manifest.tensors:
            walk.put(spec.name, view_of(self.flat, spec), spec.kind)
        for name in (*gone, *manifest.removed):
            walk.location(name).remove()
        for name, value in manifest.values.items():
            walk.location(name).put(unpack(value))
        self._check(model, stored)

    def await_copy_on_stream(self, model: nn.Module) -> None:
        """Have each of the model's steps wait for the copy under way, and nothing that goes before a step."""
        forward, device = model.forward, self._device

        @functools.wraps(forward)
        def forward_once_copied(*args: Any, **kwargs: Any) -> Any:
            device.await_copy_on_stream()
            return forward(*args, **kwargs)

        model.forward = forward_once_copied

    def fill(self, source: Weights) -> None:
        """Begin to copy the segment; with `verify`, read everything back afterwards and compare its checksums.

        Raises:
            StoreError: the segment is gone, or a checksum is wrong.
        """
        self._device.copy(self._manifest.model, source.segment, self.flat)
        if source.verify:
            self._device.wait_copied()
            self._verify()

    def _verify(self) -> None:
        manifest = self._manifest
        for block in manifest.blocks:
            if checksum(self.flat, block) != block.crc32:
                name = name_at(manifest.tensors, block)
                raise StoreError(f"{manifest.model}: the checksum of {name} is wrong after the copy")

    def _check(self, model: nn.Module, stored: set[str]) -> None:
        found = Walk(model).tensors
        if different := sorted(stored ^ set(found)):
            raise EngineError(f"{self._manifest.model}: the stored model and the built one differ in {different[0]}")
        if empty := [name for name, it in found.items() if it.tensor.is_meta]:
            raise EngineError(f"{self._manifest.model}: there is no data for {empty[0]}")


class StoredModelLoader(BaseModelLoader):  # type: ignore[misc]
    """What SGLang is given as its `load_format`. It makes the object itself, so the weights come by `loading`."""

    def download_model(self, model_config: Any) -> None:
        """Nothing to download."""

    def load_model(self, *, model_config: Any, device_config: Any) -> nn.Module:
        assert _activation is not None
        weights, phases = _activation
        phases.end("scheduler")
        model = self._initialise(model_config, torch.device(device_config.device))
        weights.attach(model)
        weights.await_copy_on_stream(model)
        phases.end("model")
        return model.eval()

    def _initialise(self, model_config: Any, device: torch.device) -> nn.Module:
        try:
            return initialise(model_config, self.load_config, torch.device("meta"))
        except (RuntimeError, ValueError, TypeError) as error:  # it looks into its own tensors
            log.debug("%s cannot be made without memory: %s", model_config.model_path, error)
        return initialise(model_config, self.load_config, device)


@contextmanager
def loading(weights: StoredWeights, phases: Phases) -> Iterator[None]:
    """Meanwhile a StoredModelLoader gives a model these weights, and says when it did in `phases`."""
    global _activation
    _activation = weights, phases
    try:
        yield
    finally:
        _activation = None


_activation: tuple[StoredWeights, Phases] | None = None
