"""Weights of an activation: the model is built without memory, then its tensors become views of one flat buffer.

SGLang's post-processing after loading was done before the segment was written and is not repeated. Objects needed
besides tensors (MoE runners, kernels) are created by SGLang when the model is built.

To be imported after `warm` has run.
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
    """One model's weights in this rank. `flat` is all their memory, whose address stays the same while the model
    lives."""

    def __init__(self, manifest: Manifest, device: RankDevice) -> None:
        self._manifest = manifest
        self._device = device
        self.flat = device.allocate(manifest.nbytes)

    def watch(self) -> weakref.ref[Any]:
        """A weak reference that is dead once the memory has been freed."""
        return weakref.ref(self.flat.untyped_storage())

    def attach(self, model: nn.Module) -> None:
        """Make every tensor of `model` a view of `flat`, and apply the other changes that loading would have made.

        Raises:
            EngineError: the model does not match the stored one.
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
        """Make each step of the model wait for the copy in progress, but not the preparations before a step."""
        forward, device = model.forward, self._device

        @functools.wraps(forward)
        def forward_once_copied(*args: Any, **kwargs: Any) -> Any:
            device.await_copy_on_stream()
            return forward(*args, **kwargs)

        model.forward = forward_once_copied

    def fill(self, source: Weights) -> None:
        """Begin to copy the segment. With `verify`, wait for it and compare checksums.

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
    """Passed to SGLang as its `load_format`. SGLang instantiates it, so it gets the weights through `loading`."""

    def download_model(self, model_config: Any) -> None:
        """There is nothing to download."""

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
        except (RuntimeError, ValueError, TypeError) as error:  # the model reads its own tensors while it is built
            log.debug("%s cannot be built on the meta device: %s", model_config.model_path, error)
        return initialise(model_config, self.load_config, device)


@contextmanager
def loading(weights: StoredWeights, phases: Phases) -> Iterator[None]:
    """The context in which StoredModelLoader attaches these weights and records `phases`."""
    global _activation
    _activation = weights, phases
    try:
        yield
    finally:
        _activation = None


_activation: tuple[StoredWeights, Phases] | None = None
