"""What a model is like that got its weights from the store, beside one that SGLang loaded itself.

`inspect_rank FOLDER...` prints a `Report` for each folder as JSON; one without weights gets dummy ones.
"""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from enginepool.engines.phases import Phases
from enginepool.engines.sglang import arguments
from enginepool.engines.sglang.protocol import Weights
from enginepool.engines.sglang.rank.cpu import CpuDevice
from enginepool.messages import Manifest, ModelSpec

SETTINGS = {"max_running": 2, "device": "cpu"}


@dataclass
class Report:
    unlisted: list[str]
    """Tensors reachable from the loaded model whose memory is in no slot of the walk."""
    outside: list[str]
    """Tensors reachable from the restored model that are not in the memory that was filled."""
    different: list[str]
    """Names at which the restored model is not as the loaded one."""
    values: dict[str, Any]
    strided: list[str]
    removed: list[str]
    offsets: dict[str, int]
    tables: dict[str, bool]
    """Of rotary embeddings: whether one that was emptied is computed again as SGLang had it."""
    infinite: list[str]
    """Names of tensors with numbers that are none, or infinite."""


def inspect(folder: Path) -> Report:
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig

    from enginepool.engines.sglang.building import as_only_rank
    from enginepool.engines.sglang.loading import weights
    from enginepool.engines.sglang.rank import stored
    from enginepool.engines.sglang.tensors import Walk

    spec = ModelSpec(folder.name, str(folder), "auto", {}, "checkpoint" if [*folder.glob("*.safetensors")] else "dummy")
    manifest, held = weights.load(spec, lambda done, total: None, **SETTINGS)
    server_args = arguments.server_args(spec, SETTINGS["max_running"], 2**24, "cpu")
    config = ModelConfig.from_server_args(server_args)
    with held, as_only_rank(server_args, config):
        loaded = weights.build(server_args, config, torch.device("cpu"), spec)[0]
        filled = stored.StoredWeights(manifest, CpuDevice())
        filled.fill(Weights(manifest, held.ref, verify=True))
        with stored.loading(filled, Phases()):
            loader = stored.StoredModelLoader(LoadConfig())
            restored = loader.load_model(model_config=config, device_config=SimpleNamespace(device="cpu"))
        walks = Walk(loaded), Walk(restored)
        listed = {memory(it.tensor) for it in walks[0].tensors.values()}
        return Report(
            unlisted=[describe(it) for it in reachable(loaded) if memory(it) not in listed],
            outside=[describe(it) for it in reachable(restored) if memory(it) != memory(filled.flat)],
            different=differences(*walks),
            values=manifest.values,
            strided=[it.name for it in manifest.tensors if it.stride],
            removed=list(manifest.removed),
            offsets=offsets(manifest),
            tables=tables_again(loaded),
            infinite=[name for name, it in walks[1].tensors.items() if not it.tensor.float().isfinite().all()],
        )


def reachable(root: object) -> list[Tensor]:
    """By the garbage collector's own account: independent of the walk that the engine uses."""
    from sglang.srt.distributed.parallel_state import GroupCoordinator

    others = (type, ModuleType, FunctionType, GroupCoordinator)  # the process's, not the model's
    found, seen, todo = [], {id(root)}, [root]
    while todo:
        here = todo.pop()
        if isinstance(here, Tensor) and here.numel() > 0:
            found.append(here)
        for it in gc.get_referents(here):
            if id(it) not in seen and not isinstance(it, others):
                seen.add(id(it))
                todo.append(it)
    return found


def differences(loaded: Any, restored: Any) -> list[str]:
    tensors = (loaded.tensors, restored.tensors)
    names = set(tensors[0]) | set(tensors[1])
    found = [it for it in names if not all(it in found for found in tensors) or not alike(*(s[it] for s in tensors))]
    values = {**loaded.values, **restored.values}
    unequal = [it for it in values if loaded.values.get(it, ...) != restored.values.get(it, ...)]
    return sorted([*found, *(it for it in unequal if not is_a_note(it, loaded))])


def is_a_note(name: str, loaded: Any) -> bool:
    """Of a loader's, and not the model's: at a parameter that loading made anew without it, or transformers' own."""
    parent, _, attribute = name.rpartition(".")
    return attribute == "_is_hf_initialized" or (parent in loaded.tensors and name not in loaded.values)


def alike(one: Any, other: Any) -> bool:
    tensors = (one.tensor, other.tensor)
    form = [(it.dtype, it.shape, it.stride(), type(it) is torch.nn.Parameter) for it in tensors]
    data = [it.detach().contiguous().reshape(-1).view(torch.uint8) for it in tensors]
    return one.kind == other.kind and form[0] == form[1] and torch.equal(*data)


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device}"


def offsets(manifest: Manifest) -> dict[str, int]:
    return {it.name: it.offset for it in manifest.tensors}


def tables_again(model: torch.nn.Module) -> dict[str, bool]:
    from enginepool.engines.sglang.loading.rotary import compute_tables

    tables = {name: it for name, it in model.named_buffers() if name.endswith("cos_sin_cache")}
    before = {name: it.clone() for name, it in tables.items()}
    for it in tables.values():
        it.zero_()
    compute_tables(model, torch.device("cpu"))
    return {name: torch.equal(it, before[name]) for name, it in tables.items()}


def main(*folders: str) -> None:
    from sglang.srt.layers.quantization import fp8

    fp8.cutlass_fp8_supported = lambda: True  # what a GPU does after loading; it needs none itself
    print(json.dumps({folder: asdict(inspect(Path(folder))) for folder in folders}))
