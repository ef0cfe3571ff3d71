"""One model in this worker, active or parked: the rank's Scheduler and the front's layer, which live together."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from config.errors import EngineError, PoolError, describe
from enginepool.engines.phases import Phases
from enginepool.engines.sglang import upstream
from enginepool.engines.sglang.front.rank_process import RankProcess
from enginepool.engines.sglang.protocol import (
    Answer,
    Build,
    BuildFailed,
    Built,
    Command,
    FillWeights,
    LimitKv,
    PauseWeights,
    Prepared,
    TornDown,
    Weights,
)
from enginepool.engines.sglang.sockets import SocketFolder
from enginepool.messages import Manifest, ModelSpec

if TYPE_CHECKING:  # it imports SGLang
    from enginepool.engines.sglang.front.layer import OpenAILayer

log = logging.getLogger("prism.sglang")


@dataclass(frozen=True, slots=True)
class KvLimit:
    """The bytes that a model's KV cache may map; 0 for no limit."""

    nbytes: int
    revision: int


class SglangSkeleton:
    """Created by `build` only. `held` and `copy_seconds` refer to the last activation; see `Built`."""

    def __init__(
        self,
        spec: ModelSpec,
        manifest: Manifest,
        rank: RankProcess,
        layer: OpenAILayer,
        built: Built,
        folder: SocketFolder,
    ) -> None:
        self.spec = spec
        self.manifest = manifest
        self.layer = layer
        self.held = built.held
        self.copy_seconds = built.copy_seconds
        self._built = built
        self._rank = rank
        self._folder = folder

    @classmethod
    async def build(
        cls, spec: ModelSpec, weights: Weights, limit: KvLimit, rank: RankProcess, phases: Phases
    ) -> SglangSkeleton:
        """Build both halves of a model.

        Raises:
            EngineError: SGLang cannot serve this model; nothing of it is left.
            StoreError: the segment is gone or a checksum is wrong; nothing of the model is left.
            PoolError: the rank is not usable any more.
        """
        folder = SocketFolder()
        try:
            return await cls._build_in(folder, spec, weights, limit, rank, phases)
        except BaseException:
            folder.remove()
            raise

    @classmethod
    async def _build_in(
        cls,
        folder: SocketFolder,
        spec: ModelSpec,
        weights: Weights,
        limit: KvLimit,
        rank: RankProcess,
        phases: Phases,
    ) -> SglangSkeleton:
        port_args = folder.port_args()
        command = Build(spec, port_args, folder.rendezvous, weights, limit.nbytes, limit.revision)
        first, second = rank.send(command), rank.next_answer()
        prepared = await first
        phases.end("arguments")
        # Built while the rank builds its half; in a thread, because this loop has to handle the rank's messages. If it
        # fails, its sockets are closed again; the rank only connects, so `_abandon` binds one to tell it to stop.
        layer = None
        if isinstance(prepared, Prepared):
            layer = await asyncio.to_thread(_build_layer, spec, prepared.server_args, port_args)
        built = await second
        if isinstance(built, Built):
            phases.took(built.phases)
        phases.end("tokenizer")
        if isinstance(layer, EngineError):
            await _abandon(rank, built, port_args)
            raise layer
        if isinstance(built, Built):
            assert layer is not None
            layer.serve(built)
            return cls(spec, weights.manifest, rank, layer, built, folder)
        if layer is not None:
            await layer.close()
        assert isinstance(built, BuildFailed)
        _check_leak(spec, built.leaked)
        raise built.error

    async def park(self) -> int:
        """Park the model; returns the bytes of device memory it still holds.

        Raises:
            EngineError: the rank does not become idle.
        """
        if not await self.layer.flush():
            raise EngineError(f"{self.spec.name}: the rank is not idle")
        held: int = await self.tell(PauseWeights())
        return held

    async def revive(self, weights: Weights, limit: KvLimit, phases: Phases) -> None:
        """Activate the parked model again.

        Raises:
            EngineError, StoreError: the weights cannot be restored; the skeleton is unusable.
        """
        if limit.nbytes:
            await self.limit_kv(limit)
        phases.end("kv_limit")
        filled = await self.tell(FillWeights(weights))
        self.copy_seconds = filled.copy_seconds
        phases.took(filled.phases)

    async def limit_kv(self, limit: KvLimit) -> None:
        """Have the rank apply a limit; it reports by KvLimitSet when the limit holds."""
        await self.tell(LimitKv(limit.revision, limit.nbytes))

    async def tell(self, command: Command) -> Any:
        """Have the rank execute `command` between two steps; returns the result.

        Raises:
            EngineError, StoreError: the command failed.
            PoolError: the rank has ended.
        """
        return await self._rank.tell(command, self.layer.command_rank)

    async def tear_down(self, phases: Phases) -> int:
        """Tear the model down; returns the bytes of device memory that the rank holds afterwards.

        Raises:
            PoolError: parts of the model are still alive in the rank, so the worker must be replaced.
        """
        answer = self._rank.next_answer()
        self.layer.shut_down_rank()
        try:
            torn_down = await answer
        finally:
            await self.layer.close()
            self._folder.remove()
        assert isinstance(torn_down, TornDown)
        phases.took(torn_down.phases)
        phases.end("stop")
        _check_leak(self.spec, torn_down.leaked)
        return torn_down.held

    async def close(self) -> None:
        """Like `tear_down`, but leaves the rank alone, which is about to be killed."""
        await self.layer.close()
        self._folder.remove()

    def remove_files(self) -> None:
        self._folder.remove()


def _build_layer(spec: ModelSpec, server_args: object, port_args: object) -> OpenAILayer | EngineError:
    from enginepool.engines.sglang.front.layer import OpenAILayer

    try:
        return OpenAILayer(server_args, port_args)
    except Exception as error:  # a broken tokenizer or template may raise anything
        log.debug("the front half of %s failed", spec.name, exc_info=True)
        upstream.close_all_sockets()
        return EngineError(f"{spec.name}: SGLang cannot serve {spec.path}: {describe(error)}")


async def _abandon(rank: RankProcess, built: Answer, port_args: object) -> None:
    """Stop a rank whose front half could not be built."""
    if isinstance(built, Built):
        answer = rank.next_answer()
        upstream.send_shutdown(port_args)
        await answer


def _check_leak(spec: ModelSpec, leaked: tuple[str, ...]) -> None:
    if leaked:
        raise PoolError(f"{spec.name} was torn down, but its {', '.join(leaked)} is still alive")
