"""SGLang's weights by way of the weight store: all that loading made is there again, and nothing stays behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from config.errors import StoreError
from enginepool.messages import ModelSpec
from enginepool.pool.forks import ForkServer
from enginepool.pool.store import WeightStore
from enginepool.weights.segment import HeldSegment, create, open_segment
from gateway.demo_models import NAMES
from tests.rig.models import Stored, ignore_progress
from tests.rig.sglang_checkpoints import without
from tests.rig.sglang_models import NEEDS_SGLANG, Worker

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG, pytest.mark.asyncio(loop_scope="session")]


@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"])
async def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(
    sglang_forks: ForkServer, sglang_models: dict[str, Path], tmp_path: Path, tensor: str
) -> None:
    folder = without(tmp_path / "lacking", sglang_models["llama-tiny"], tensor)
    named = tensor.replace("k_proj", "qkv_proj").replace(".", r"\.")
    with pytest.raises(StoreError, match=f"lacking: 1 tensors are missing .*{named}"):
        await WeightStore(sglang_forks).load(ModelSpec("lacking", str(folder), "auto", {}), ignore_progress)


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
async def test_a_folder_that_sglang_cannot_read_is_an_error(
    sglang_forks: ForkServer, sglang_models: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    folder = without(tmp_path / "broken", sglang_models["llama-tiny"], "model.norm.weight")
    (folder / damage).write_text("{}")
    with pytest.raises(StoreError, match=r"^broken: .*SGLang cannot"):
        await WeightStore(sglang_forks).load(ModelSpec("broken", str(folder), "auto", {}), ignore_progress)


async def test_a_loaded_key_depends_on_what_sglang_was_told(
    sglang_forks: ForkServer, sglang_stored: dict[str, Stored]
) -> None:
    stored, store = sglang_stored["llama-tiny"], WeightStore(sglang_forks)
    await store.load(replace_arguments(stored.spec, context_length=1024), ignore_progress)
    other = store.get("llama-tiny")
    assert other is not None
    assert other.manifest.key != stored.manifest.key
    store.close()


def replace_arguments(spec: ModelSpec, **engine_args: Any) -> ModelSpec:
    return ModelSpec(spec.name, spec.path, spec.dtype, engine_args)


@pytest.fixture
def flipped(sglang_stored: dict[str, Stored]) -> Iterator[Stored]:
    """A stored model with one bit wrong, in the middle."""
    good = sglang_stored["llama-tiny"]
    held = copy_flipped(good.segment)
    yield replace(good, segment=held)
    held.close()


def copy_flipped(segment: HeldSegment) -> HeldSegment:
    source, target = open_segment(segment.ref), create("flipped", segment.nbytes)
    with source.view() as good, target.view() as bad:
        bad[:] = good
        bad[segment.nbytes // 2] ^= 1
    source.close()
    return target.seal()


async def test_a_wrong_byte_is_found_when_it_is_looked_for(
    sglang_worker: Worker, sglang_stored: dict[str, Stored], sglang_answers: dict[str, str], flipped: Stored
) -> None:
    good, worker = sglang_stored["llama-tiny"], sglang_worker
    assert "llama-tiny: the checksum of " in await worker.fail_to_activate(flipped, verify=True)
    await worker.activate(good, verify=True)
    await worker.park()
    assert "llama-tiny: the checksum of " in await worker.fail_to_activate(flipped, verify=True)
    await worker.activate(good, verify=True)
    assert await worker.complete() == sglang_answers["llama-tiny"]


async def test_a_parked_model_is_filled_again_where_it_was(
    sglang_worker: Worker, sglang_stored: dict[str, Stored], sglang_answers: dict[str, str], flipped: Stored
) -> None:
    """Shown by a wrong byte that nobody looks for: it comes with one copy and goes with the next."""
    worker = sglang_worker
    await worker.activate(sglang_stored["llama-tiny"])
    await worker.park()
    await worker.activate(flipped)
    await worker.park()
    assert list(await worker.activate(sglang_stored["llama-tiny"], verify=True)) == ["kv_limit", "resume", "copy"]
    assert await worker.complete() == sglang_answers["llama-tiny"]


async def test_no_segment_stays_mapped_in_a_worker(sglang_worker: Worker, sglang_stored: dict[str, Stored]) -> None:
    """The weights' own memory is checked by the rank at each teardown; with any of it left the worker would end."""
    worker = sglang_worker
    for name in NAMES:
        await worker.activate(sglang_stored[name])
        assert mapped_segments(worker) == []
        await worker.park()
    await worker.blank()


def mapped_segments(worker: Worker) -> list[str]:
    maps = [Path(f"/proc/{it.pid}/maps").read_text() for it in (worker.front, worker.rank)]
    opened = [
        os.readlink(it) for pid in (worker.front.pid, worker.rank.pid) for it in Path(f"/proc/{pid}/fd").iterdir()
    ]
    return [line for line in (*"".join(maps).splitlines(), *opened) if "memfd:prism-" in line]
