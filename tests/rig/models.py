"""Fixtures: the demo's tiny models on disk, and their weights in segments, made once per test run.

torch is imported where it is used: pytest-xdist's own process runs no test.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from enginepool.messages import Manifest, ModelSpec
from enginepool.weights.segment import HeldSegment
from gateway.demo_models import NAMES, make_demo_models


@dataclass(frozen=True)
class Stored:
    spec: ModelSpec
    manifest: Manifest
    segment: HeldSegment


def spec_of(path: Path, name: str = "") -> ModelSpec:
    return ModelSpec(name or path.name, str(path), "auto", {})


def ignore_progress(done: int, total: int) -> None:
    pass


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    make_demo_models(folder, print)
    return folder


@pytest.fixture(scope="session")
def stored(demo_folder: Path) -> Iterator[dict[str, Stored]]:
    import torch

    from enginepool.engines.transformers.weights import load

    torch.set_num_threads(1)  # as the template does; more only wait for each other on a busy machine
    models = {}
    for name in NAMES:
        spec = spec_of(demo_folder / name)
        manifest, segment = load(spec, ignore_progress)
        models[name] = Stored(spec, manifest, segment)
    yield models
    for model in models.values():
        model.segment.close()
