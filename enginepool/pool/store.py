"""The gateway's side of the weight store: keeps models' weights in host shared memory and has loaders load more.

The gateway holds one file descriptor per model and never maps it. Segments have no name in any file system, so the
kernel frees them when the gateway ends, however it ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from config.errors import ChannelError, PoolError, StoreError
from enginepool.messages import (
    Exit,
    FromLoader,
    Load,
    Loaded,
    LoadFailed,
    LoadProgress,
    Manifest,
    ModelSpec,
    SegmentRef,
)
from enginepool.pool.forks import Child, ForkServer
from enginepool.weights.segment import HeldSegment, adopt

log = logging.getLogger("prism.store")

LOAD_SILENCE = 600.0
"""Seconds without a progress report after which a loader counts as stuck."""

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


@dataclass(frozen=True, slots=True)
class StoredModel:
    manifest: Manifest
    segment: HeldSegment

    @property
    def ref(self) -> SegmentRef:
        return self.segment.ref


class WeightStore:
    def __init__(self, forks: ForkServer) -> None:
        self._forks = forks
        self._models: dict[str, StoredModel] = {}

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self._models)

    def get(self, name: str) -> StoredModel | None:
        return self._models.get(name)

    async def load(self, model: ModelSpec, progress: Progress) -> int:
        """Load a model into host memory; returns its size there in bytes.

        Raises:
            StoreError: the model cannot be read, or host memory is short.
        """
        try:
            loaded = await _Loading(model, progress).run(self._forks)
        except (PoolError, ChannelError) as error:
            raise StoreError(f"loading {model.name}: {error}") from error
        self._models[model.name] = loaded
        return loaded.manifest.nbytes

    def drop(self, name: str) -> None:
        """Release a model's host memory. It is freed once no worker maps it any more."""
        stored = self._models.pop(name, None)
        if stored is not None:
            stored.segment.close()

    def close(self) -> None:
        for name in list(self._models):
            self.drop(name)


class _Loading:
    """The life of one loader process."""

    def __init__(self, model: ModelSpec, progress: Progress) -> None:
        self._model = model
        self._progress = progress
        self._result: asyncio.Future[StoredModel] = asyncio.get_running_loop().create_future()
        self._heard = False

    async def run(self, forks: ForkServer) -> StoredModel:
        child: Child[FromLoader] = await forks.fork("loader", "loader", "cpu", FromLoader)
        child.receive(self._on_message)
        try:
            child.channel.send(Load(self._model))
            while not self._result.done():
                await self._wait(child)
            return self._result.result()
        finally:
            if not child.channel.closed:
                child.channel.send(Exit())
            await child.kill()

    async def _wait(self, child: Child[FromLoader]) -> None:
        self._heard = False
        await asyncio.wait((self._result, child.exited), timeout=LOAD_SILENCE, return_when=asyncio.FIRST_COMPLETED)
        if self._result.done():
            return
        if child.exited.done():
            raise StoreError(f"{self._model.name}: the loader ended: {child.exited.result()}")
        if not self._heard:
            raise StoreError(f"{self._model.name}: the loader was silent for {LOAD_SILENCE:g} s")

    def _on_message(self, message: FromLoader) -> None:
        self._heard = True
        match message:
            case LoadProgress():
                self._progress(message.done, message.total)
            case Loaded():
                self._adopt(message)
            case LoadFailed():
                self._result.set_exception(StoreError(message.reason))

    def _adopt(self, message: Loaded) -> None:
        try:
            segment = adopt(message.segment)
        except StoreError as error:
            self._result.set_exception(error)
        else:
            self._result.set_result(StoredModel(message.manifest, segment))
