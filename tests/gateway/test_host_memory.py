"""The budget of host memory, with real models: what does not fit goes back to disk, the least wanted first."""

from __future__ import annotations

from pathlib import Path

from tests.rig.asking import chat
from tests.rig.serving import Prism, ServePrism

NAMES = ("llama-tiny", "qwen3-tiny", "gemma3-tiny")
ROOM_FOR_TWO = "45MiB"


def in_host_memory(prism: Prism) -> set[str]:
    return {model.name for model in prism.status().models if model.host_bytes}


def test_the_least_wanted_model_goes_back_to_disk_and_comes_again(serve_prism: ServePrism, demo_folder: Path) -> None:
    models = [{"name": name, "path": str(demo_folder / name)} for name in NAMES]
    prism = serve_prism({"weight_store": {"host_memory": ROOM_FOR_TWO}, "models": models})
    for name in NAMES:
        assert chat(prism, name, max_tokens=3).status == 200
    assert in_host_memory(prism) == {"qwen3-tiny", "gemma3-tiny"}
    assert chat(prism, "llama-tiny", max_tokens=3).status == 200
    assert in_host_memory(prism) == {"llama-tiny", "gemma3-tiny"}
    status = prism.status()
    assert status.host_memory.used <= status.host_memory.capacity
    told = [entry.text for entry in status.decisions]
    assert "dropping llama-tiny from host memory: host memory is needed for gemma3-tiny" in told


def test_a_preloaded_model_is_in_host_memory_before_anybody_asks_and_stays(
    serve_prism: ServePrism, demo_folder: Path
) -> None:
    models = [{"name": name, "path": str(demo_folder / name), "preload": name == "llama-tiny"} for name in NAMES]
    prism = serve_prism({"weight_store": {"host_memory": ROOM_FOR_TWO}, "models": models})
    prism.wait_until(lambda _: in_host_memory(prism) == {"llama-tiny"}, "the preloaded model is in host memory")
    for name in ("qwen3-tiny", "gemma3-tiny", "qwen3-tiny"):
        assert chat(prism, name, max_tokens=3).status == 200
        assert in_host_memory(prism) == {"llama-tiny", name}
