"""The loader: a checkpoint becomes a segment that holds every tensor of the loaded model, once."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from config.errors import EngineError, HostMemoryShort, StoreError
from enginepool.engines.transformers.tensors import slots_of
from enginepool.engines.transformers.weights import load
from enginepool.host import host_memory
from enginepool.messages import ModelSpec
from enginepool.weights import segment
from enginepool.weights.layout import base_tensor, view_of
from gateway.demo_models import NAMES, make_demo_models
from tests.rig.models import Stored, ignore_progress, spec_of


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_the_model_is_in_the_segment(stored: dict[str, Stored], name: str) -> None:
    model = stored[name]
    reference = AutoModelForCausalLM.from_pretrained(model.spec.path)
    mapped = segment.open_segment(model.segment.ref)
    base = base_tensor(mapped.view())
    kept = {spec.name: view_of(base, spec) for spec in model.manifest.tensors}
    tensors = [*reference.named_parameters(remove_duplicate=False), *reference.named_buffers()]
    for key, tensor in tensors:
        assert torch.equal(kept.pop(key), tensor), key
    assert kept == {}
    del base
    mapped.close()


@pytest.mark.parametrize("name", NAMES)
def test_buffers_that_no_checkpoint_has_are_kept_too(stored: dict[str, Stored], name: str) -> None:
    buffers = [tensor.name for tensor in stored[name].manifest.tensors if tensor.kind == "buffer"]
    assert any("inv_freq" in buffer for buffer in buffers)


def test_tied_weights_are_stored_once(stored: dict[str, Stored]) -> None:
    tensors = {tensor.name: tensor for tensor in stored["qwen3-tiny"].manifest.tensors}
    assert tensors["lm_head.weight"].offset == tensors["model.embed_tokens.weight"].offset
    once = {tensor.offset: tensor.nbytes for tensor in tensors.values()}
    assert sum(once.values()) <= stored["qwen3-tiny"].manifest.nbytes < sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_aligned_apart_and_checksummed(stored: dict[str, Stored], name: str) -> None:
    manifest = stored[name].manifest
    mapped = segment.open_segment(stored[name].segment.ref)
    with mapped.view() as view:
        end = 0
        for block in manifest.blocks:
            assert block.offset % 64 == 0
            assert block.offset >= end
            end = block.offset + block.nbytes
            assert zlib.crc32(view[block.offset : end]) == block.crc32
        assert end <= manifest.nbytes == len(view)
    assert {(t.offset, t.nbytes) for t in manifest.tensors} == {(b.offset, b.nbytes) for b in manifest.blocks}
    mapped.close()


def test_a_dtype_is_converted_to(demo_folder: Path) -> None:
    path = demo_folder / "llama-tiny"
    manifest, held = load(ModelSpec("llama", str(path), "bfloat16", {}), ignore_progress)
    held.close()
    dtypes = {tensor.dtype for tensor in manifest.tensors if tensor.kind == "parameter"}
    assert dtypes == {"bfloat16"}


def test_progress_is_in_bytes_and_reaches_its_end(demo_folder: Path) -> None:
    reports: list[tuple[int, int]] = []
    manifest, held = load(spec_of(demo_folder / "qwen3-tiny"), lambda done, total: reports.append((done, total)))
    held.close()
    file = demo_folder / "qwen3-tiny" / "model.safetensors"
    done = [report[0] for report in reports]
    assert done == sorted(done)
    assert done[0] == 0
    assert reports[-1] == (file.stat().st_size + manifest.nbytes,) * 2
    assert len(set(done)) > 10


def test_the_key_follows_the_checkpoint_and_the_dtype(demo_folder: Path, tmp_path: Path) -> None:
    def key(path: Path, dtype: str = "auto") -> str:
        manifest, held = load(ModelSpec("m", str(path), dtype, {}), ignore_progress)
        held.close()
        return manifest.key

    path = tmp_path / "model"
    shutil.copytree(demo_folder / "qwen3-tiny", path)
    first = key(path)
    assert key(path) == first
    assert key(path, "bfloat16") != first
    weights = load_file(path / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    assert key(path) != first


def broken(demo_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model"
    shutil.copytree(demo_folder / "qwen3-tiny", path)
    return path


def test_a_folder_without_weights_is_an_error(demo_folder: Path, tmp_path: Path) -> None:
    path = broken(demo_folder, tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(StoreError, match="m: no weights"):
        load(spec_of(path, "m"), ignore_progress)


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"m: .*config\.json"):
        load(spec_of(tmp_path / "nowhere", "m"), ignore_progress)


def test_an_unknown_architecture_is_an_error(demo_folder: Path, tmp_path: Path) -> None:
    path = broken(demo_folder, tmp_path)
    (path / "config.json").write_text(json.dumps({"model_type": "surprise"}))
    with pytest.raises(StoreError, match=r"m: transformers cannot load .*surprise"):
        load(spec_of(path, "m"), ignore_progress)


def test_a_truncated_file_is_an_error(demo_folder: Path, tmp_path: Path) -> None:
    path = broken(demo_folder, tmp_path)
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"m: transformers cannot load .*SafetensorError"):
        load(spec_of(path, "m"), ignore_progress)


def test_a_checkpoint_that_lacks_a_tensor_is_an_error(demo_folder: Path, tmp_path: Path) -> None:
    path = broken(demo_folder, tmp_path)
    weights = load_file(path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StoreError, match=r"m: 1 tensors are missing .*model\.norm\.weight"):
        load(spec_of(path, "m"), ignore_progress)


def test_too_little_host_memory_is_an_error(demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_memory, "room", lambda: 2**20)
    with pytest.raises(HostMemoryShort, match=r"m: loading needs \d+ bytes of host memory, 1048576 are available"):
        load(spec_of(demo_folder / "qwen3-tiny", "m"), ignore_progress)


def test_plain_attributes_count_as_tensors_of_a_module() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].scale = torch.ones(())
    slots = {slot.name: slot for slot in slots_of(module)}
    assert set(slots) == {"0.weight", "0.bias", "0.scale"}
    slots["0.scale"].put(torch.zeros(()))
    assert module[0].scale == 0
    slots["0.weight"].put(torch.zeros(2, 2))
    assert isinstance(module[0].weight, nn.Parameter)


def test_tensors_where_no_slot_can_stand_for_them_are_an_error() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].scales = [torch.ones(())]
    with pytest.raises(EngineError, match=r"0\.scales is a list of tensors"):
        list(slots_of(module))


def test_demo_models_that_are_complete_are_left_alone(demo_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*")}
    lines: list[str] = []
    paths = make_demo_models(demo_folder, lines.append)
    assert [path.name for path in paths] == list(NAMES)
    assert {path: path.stat().st_mtime_ns for path in demo_folder.rglob("*")} == before
    assert lines == []
