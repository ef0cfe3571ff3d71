"""`weights: dummy` in the form that SGLang gives to weights (`programs/inspect_rank.py`)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench.shapes import config_of
from config.registry import ModelConfig, Registry
from gateway.dummy_models import with_folders
from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]

FP8 = {"quantization_config": {"quant_method": "fp8", "activation_scheme": "static"}}
FORMS: dict[str, dict[str, Any]] = {
    "tied": config_of("qwen3-0.6b", tiny=True),
    "moe": config_of("qwen3-moe", tiny=True),
    "mla": config_of("deepseek-mla", tiny=True),
    "fp8": config_of("llama-8b", tiny=True) | FP8,
}


@pytest.fixture(scope="module")
def reports(print_of: PrintOf, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A `Report` of tests/sglang/programs/inspect_rank.py for each form."""
    made = tmp_path_factory.mktemp("forms")
    for form, config in FORMS.items():
        (made / f"{form}.json").write_text(json.dumps(config))
    listed = tuple(ModelConfig(name=form, shape=made / f"{form}.json", weights="dummy") for form in FORMS)
    folders = [str(it.path) for it in with_folders(Registry(models=listed), made / "models").models]
    printed = print_of("inspect_rank", *folders)
    return dict(zip(FORMS, json.loads(printed.splitlines()[-1]).values(), strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_what_sglang_derives_of_them_is_stored_whole_and_finite(reports: dict[str, Any], form: str) -> None:
    """Made twice, and restored once: so they are the same each time, too."""
    report = reports[form]
    assert (report["unlisted"], report["different"], report["infinite"]) == ([], [], [])


def test_what_sglang_does_after_loading_is_done(reports: dict[str, Any]) -> None:
    assert "model.layers.0.mlp.down_proj.weight" in reports["fp8"]["strided"]
    assert "model.layers.0.self_attn.w_kc" in reports["mla"]["strided"]
    offsets = reports["tied"]["offsets"]
    assert offsets.get("lm_head.weight", offsets["model.embed_tokens.weight"]) == offsets["model.embed_tokens.weight"]
