"""Texts to clients name models, never paths of the server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from config.registry import ModelConfig
from gateway.server_paths import ServerPaths
from tests.rig.asking import chat
from tests.rig.serving import ServePrism

PATHS = ServerPaths(
    [ModelConfig(name="org/llama", path=Path("/models/llama")), ModelConfig(name="big", path=Path("/models/llama/big"))]
)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("cannot load /models/llama: OSError: no /models/llama/big", "cannot load org/llama: OSError: no big"),
        ("no weights in /models/llama/x y", "no weights in org/llama/x y"),
        ("[Errno 2] No such file: '/home/me/.cache/a.json'", "[Errno 2] No such file: '(path)'"),
        ("cannot open the segment at /proc/12/fd/3: gone", "cannot open the segment at (path): gone"),
        ("org/llama takes 3 tokens/s, see https://example.com/a/b", "org/llama takes 3 tokens/s, see https://example.com/a/b"),
    ],
)  # fmt: skip
def test_paths_become_names_or_nothing(said: str, told: str) -> None:
    assert PATHS.hide(said) == told


def test_what_a_client_sent_is_quoted_as_it_is() -> None:
    assert PATHS.hide_in_answer(b"no /models/llama, '/v1/x', \xff") == b"no org/llama, '/v1/x', \xff"


def test_a_broken_model_is_refused_by_its_name_and_the_operator_hears_the_path(
    serve_prism: ServePrism, demo_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "secret" / "place"
    broken.mkdir(parents=True)
    for file in (demo_folder / "llama-tiny").iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[: 4096 if file.suffix == ".safetensors" else None])
    prism = serve_prism({"models": [{"name": "broken", "path": str(broken)}]})
    answer = chat(prism, "broken", max_tokens=1)
    assert answer.status == 503
    assert "broken" in answer.error["message"]
    assert "secret" not in json.dumps(answer.error)
    assert str(broken) in prism.model("broken").failure
    prism.wait_for_log(str(broken))
