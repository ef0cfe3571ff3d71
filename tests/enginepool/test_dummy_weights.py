"""`weights: dummy`: a model of which only a config.json is there is served, and answers the same everywhere."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from bench.shapes import config_of
from config.errors import StoreError
from enginepool.weights import dummy
from gateway.dummy_tokenizer import write_tokenizer
from tests.rig.asking import complete
from tests.rig.serving import Prism, ServePrism
from tests.rig.sglang_models import NEEDS_SGLANG

ENGINES = ["transformers", pytest.param("sglang", marks=[pytest.mark.sglang, NEEDS_SGLANG])]
TOKENS = 16
PROMPTS = ("Once upon a time", "The capital of France")


# --- served by the gateway ------------------------------------------------------------------------------------


MODELS = {"chat": "llama-1b", "org/twin": "llama-1b", "mixture": "qwen3-moe"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of config.json files, and nothing else."""
    folder = tmp_path_factory.mktemp("shapes")
    for name in ("llama-1b", "qwen3-moe"):
        (folder / f"{name}.json").write_text(json.dumps(config_of(name, tiny=True)))
    return folder


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def served(engine: str, shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Three models, two of one shape, on one worker of each engine."""
    prism = Prism.start(tmp_path_factory.mktemp("served") / "gateway", registry(engine, shapes, MODELS))
    prism.wait_for_workers()
    yield prism
    prism.close()


def registry(engine: str, shapes: Path, models: dict[str, str], workers: int = 1) -> dict[str, object]:
    """Models by name, each with the name of its shape."""
    listed = [
        {"name": name, "shape": str(shapes / f"{shape}.json"), "weights": "dummy", "dtype": "float32"}
        for name, shape in models.items()
    ]
    return {
        "pool": {"engine": engine, "workers_per_device": workers, "kv_memory": "64MiB"},
        "weight_store": {"verify": True},
        "models": listed,
    }


def answer(prism: Prism, model: str, prompt: str = PROMPTS[0]) -> str:
    found = complete(prism, model, prompt=prompt, max_tokens=TOKENS, temperature=0)
    assert found.status == 200, found.body
    text: str = found.json["choices"][0]["text"]
    return text


def test_shapes_alone_are_served_and_swapped(served: Prism) -> None:
    before = {name: answer(served, name) for name in MODELS}

    assert len(set(before.values())) == len(MODELS), "models of one shape differ as well"
    assert len({answer(served, "chat", prompt) for prompt in PROMPTS}) == len(PROMPTS)
    assert all(len(set(text.split())) > TOKENS // 4 for text in before.values()), "not one token for ever"
    assert {name: answer(served, name) for name in reversed(MODELS)} == {**before}
    assert served.command("evict", model="chat").ok
    assert answer(served, "chat") == before["chat"]


def test_another_gateway_answers_the_same(engine: str, served: Prism, serve_prism: ServePrism, shapes: Path) -> None:
    other = serve_prism(registry(engine, shapes, {"chat": MODELS["chat"]}))
    assert answer(other, "chat") == answer(served, "chat")


def test_nothing_of_a_model_is_left_on_disk(serve_prism: ServePrism, shapes: Path) -> None:
    there = sorted(shapes.rglob("*"))
    prism = serve_prism(registry("transformers", shapes, {"chat": "llama-1b"}))
    answer(prism, "chat")
    made = {file.name for file in prism.folder.rglob("*") if file.is_file() and "0-chat" in str(file)}
    assert made == {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}

    assert prism.stop() == 0
    assert os.listdir(prism.folder) == ["registry.yaml"]
    assert sorted(shapes.rglob("*")) == there


def test_what_a_killed_gateway_leaves_is_swept_by_the_next(short_path: Path, shapes: Path) -> None:
    socket = short_path / "admin.sock"
    content = registry("transformers", shapes, {"chat": "llama-1b"}) | {"gateway": {"admin_socket": str(socket)}}
    first = Prism.start(short_path / "first", content)
    left = list(short_path.rglob("0-chat"))
    first.kill()
    first.close()
    assert left == list(short_path.rglob("0-chat")) != []

    second = Prism.start(short_path / "second", {**content, "models": [{"name": "a"}], "pool": {"engine": "simulated"}})
    assert not list(short_path.rglob("0-chat"))
    second.close()


def test_a_folder_with_config_and_tokenizer_needs_no_weights(serve_prism: ServePrism, demo_folder: Path) -> None:
    """Of a model that was downloaded in part, say; its own tokenizer is used."""
    prism = serve_prism(
        {
            "pool": {"workers_per_device": 1},
            "models": [{"name": "chat", "path": str(demo_folder / "llama-tiny"), "weights": "dummy"}],
        }
    )
    tokens = complete(prism, "chat", prompt="Once upon a time", max_tokens=1).json["usage"]["prompt_tokens"]
    own = AutoTokenizer.from_pretrained(demo_folder / "llama-tiny")
    assert tokens == len(own("Once upon a time")["input_ids"])
    assert not list(prism.folder.rglob("0-chat"))


def test_the_scheduler_knows_their_size_before_they_are_made(serve_prism: ServePrism, shapes: Path) -> None:
    prism = serve_prism(registry("transformers", shapes, {"chat": "llama-1b"}))
    expected = prism.model("chat").weight_bytes
    answer(prism, "chat")
    assert expected == pytest.approx(prism.model("chat").weight_bytes, rel=0.01)


# --- the numbers ----------------------------------------------------------------------------------------------


class Layers(nn.Module):
    """Two linear layers in fp8, as SGLang names what belongs to them, between others."""

    def __init__(self, dtype: torch.dtype = torch.float8_e4m3fn) -> None:
        super().__init__()
        for index in range(2):
            self._add(f"{index}_weight", torch.empty(300, 200, dtype=dtype))
            self._add(f"{index}_weight_scale_inv", torch.full((3, 2), torch.finfo(torch.float32).min))
        self._add("input_scale", torch.full((1,), torch.finfo(torch.float32).min))
        self._add("k_scale", torch.tensor(1.0))
        self._add("norm_weight", torch.empty(200))
        self._add("bias", torch.empty(200))

    def _add(self, name: str, tensor: torch.Tensor) -> None:
        self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def values(self, name: str) -> torch.Tensor:
        return self.get_parameter(name).float()


@pytest.fixture
def filled() -> Layers:
    layers = Layers()
    dummy.fill(layers, "a", hidden=4096)
    return layers


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_numbers_are_finite_and_spread(dtype: torch.dtype) -> None:
    layers = Layers(dtype)
    dummy.fill(layers, "a", hidden=4096)
    weights = layers.values("0_weight")
    assert bool(weights.isfinite().all())
    assert float(weights.mean()) == pytest.approx(0.0, abs=0.01 * float(weights.abs().max()))
    scale = layers.values("0_weight_scale_inv")[0, 0] if dtype.itemsize == 1 else 1.0
    assert float((scale * weights).std()) == pytest.approx(dummy.STD, rel=0.05)


def test_norms_biases_and_scales_are_what_a_trained_model_may_have(filled: Layers) -> None:
    assert bool((filled.values("norm_weight") == 1).all())
    assert bool((filled.values("bias") == 0).all())
    assert all(bool((filled.values(name) > 0).all()) for name in ("0_weight_scale_inv", "input_scale"))
    assert float(filled.values("k_scale")) == 1.0, "it has a default"


def test_no_two_tensors_rows_or_models_are_equal(filled: Layers) -> None:
    other, again = Layers(), Layers()
    dummy.fill(other, "b", hidden=4096)
    dummy.fill(again, "a", hidden=4096)
    weights = filled.values("0_weight")
    assert torch.equal(weights, again.values("0_weight"))
    assert not torch.equal(weights, filled.values("1_weight"))
    assert not torch.equal(weights, other.values("0_weight"))
    assert len(weights.unique(dim=0)) == len(weights)


def test_a_tensor_may_be_larger_than_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dummy, "DRAWN", 15 * dummy.STEP + 1)
    layers = Layers()
    dummy.fill(layers, "a", hidden=4096)
    weights = layers.values("0_weight")
    assert weights.numel() > dummy.DRAWN
    assert len(weights.unique(dim=0)) == len(weights)


def test_what_is_changed_afterwards_changes_no_other_tensor(filled: Layers) -> None:
    before = filled.values("1_weight").clone()
    filled.get_parameter("0_weight").data.view(torch.uint8).fill_(0)
    assert torch.equal(filled.values("1_weight"), before)


def test_packed_integers_are_refused_by_name() -> None:
    layers = Layers()
    layers._add("qweight", torch.empty(8, 8, dtype=torch.int32))
    with pytest.raises(StoreError, match=r"qweight is of torch\.int32"):
        dummy.fill(layers, "a", hidden=4096)


# --- the tokenizer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [259, 4096, 40000])
def test_a_made_up_tokenizer_fills_the_vocabulary_and_keeps_any_text(tmp_path: Path, vocabulary: int) -> None:
    write_tokenizer(tmp_path, vocabulary, 1000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == vocabulary
    assert tokenizer.model_max_length == 1000
    text = "Two  quick brown foxes\n\tjump over 42 naïve 漢字."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_token_has_a_text_and_english_takes_few(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 40000, 1000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert all(tokenizer.convert_ids_to_tokens(range(40000)))
    text = " the harbour remembers what the painter opens because the river follows the narrow street"
    assert len(tokenizer(text)["input_ids"]) < len(text) / 2
    numbers = tokenizer(" 7 19 1234")["input_ids"]
    assert len(numbers) == 3, "what random weights say is read as the same tokens again"


def test_a_chat_has_a_template(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 4096, 1000)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Hello"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] < 3
