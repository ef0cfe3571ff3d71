"""The example for one GPU as it is in the repository: six models without a file of weights, and one with MLA."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from bench.shapes import FOLDER
from bench.subjects.device_memory import DeviceMemory
from tests.gpu.settings import DEVICE, PATIENCE, PROMPTS, TOKENS, answer, evict
from tests.rig import asking, serving
from tests.rig.serving import Prism

pytestmark = pytest.mark.gpu

EXAMPLE = Path(str(FOLDER)).parent / "one-gpu.yaml"


@pytest.fixture(scope="module")
def dummies(run_mark: str, memory: DeviceMemory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Beside whatever else the GPU has, in a part of its memory."""
    example = yaml.safe_load(EXAMPLE.read_text())
    models = [*example["models"], {"name": "deepseek-mla", "shape": "shapes/deepseek-mla.json", "weights": "dummy"}]
    for model in models:
        model["shape"] = str(EXAMPLE.parent / model["shape"])
    pool = {**example["pool"], "devices": [DEVICE], "device_memory": "60GiB"}
    with pytest.MonkeyPatch.context() as patch:
        for module in (asking, serving):
            patch.setattr(module, "PATIENCE", PATIENCE)
        registry = {"pool": pool, "weight_store": {"host_memory": "64GiB", "verify": True}, "models": models}
        prism = Prism.start(tmp_path_factory.mktemp("dummy") / "gateway", registry)
        prism.wait_for_workers()
        yield prism
        processes = prism.descendants()
        prism.close()
    assert not psutil.wait_procs(processes, timeout=PATIENCE)[1]


def test_every_model_answers_each_prompt_otherwise_and_the_same_after_a_swap(dummies: Prism) -> None:
    names = [model.name for model in dummies.status().models]
    first = {name: [answer(dummies, name, prompt) for prompt in PROMPTS] for name in names}
    for name, answers in first.items():
        assert len({tuple(tokens) for tokens in answers}) == len(PROMPTS), name
        assert all(len(set(tokens)) > TOKENS // 4 for tokens in answers), f"{name}: one token for ever"
    for name in reversed(names):
        evict(dummies, name)
        assert [answer(dummies, name, prompt) for prompt in PROMPTS] == first[name], name
    assert [worker.restarts for worker in dummies.status().workers] == [0] * 4
