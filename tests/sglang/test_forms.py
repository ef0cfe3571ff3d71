"""All that loading makes of a model, of any form, is there again in a rank (`programs/inspect_rank.py`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.demo_models import NAMES
from tests.rig.sglang_checkpoints import make_fp8, make_mla, make_moe
from tests.rig.sglang_models import NEEDS_SGLANG
from tests.rig.sglang_programs import PrintOf

pytestmark = [pytest.mark.sglang, NEEDS_SGLANG]

FORMS = ("llama-tiny", "qwen3-tiny", "gemma3-tiny", "moe", "mla", "fp8")


@pytest.fixture(scope="module")
def reports(
    print_of: PrintOf, sglang_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A `Report` of tests/sglang/programs/inspect_rank.py for each model."""
    made = tmp_path_factory.mktemp("forms")
    odd = [make_moe(made / "moe"), make_mla(made / "mla"), make_fp8(made / "fp8", sglang_models["llama-tiny"])]
    folders = [*(str(sglang_models[name]) for name in NAMES), *map(str, odd)]
    found = json.loads(print_of("inspect_rank", *folders).splitlines()[-1])
    return {Path(folder).name: report for folder, report in found.items()}


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_that_can_be_reached_is_in_the_manifest(reports: dict[str, Any], form: str) -> None:
    assert reports[form]["unlisted"] == []


@pytest.mark.parametrize("form", FORMS)
def test_a_restored_model_is_the_loaded_one_in_one_piece_of_memory(reports: dict[str, Any], form: str) -> None:
    assert reports[form]["different"] == []
    assert reports[form]["outside"] == []


def test_values_that_loading_derives_are_kept(reports: dict[str, Any]) -> None:
    """Of fp8: the scale of keys, which a kernel takes as a float."""
    assert reports["fp8"]["values"]["model.layers.0.self_attn.attn.k_scale_float"] == 1.0
    assert reports["llama-tiny"]["values"] == {}


def test_transposed_weights_stay_so(reports: dict[str, Any]) -> None:
    assert "model.layers.0.mlp.down_proj.weight" in reports["fp8"]["strided"]
    assert "model.layers.0.self_attn.w_kc" in reports["mla"]["strided"]
    assert reports["llama-tiny"]["strided"] == []


@pytest.mark.parametrize("form", FORMS)
def test_tables_of_rotary_embeddings_can_be_computed_where_the_model_will_serve(
    reports: dict[str, Any], form: str
) -> None:
    assert reports[form]["tables"]
    assert all(reports[form]["tables"].values())


@pytest.mark.parametrize("form", ["qwen3-tiny", "gemma3-tiny"])
def test_tied_weights_are_stored_once(reports: dict[str, Any], form: str) -> None:
    offsets = reports[form]["offsets"]
    assert offsets.get("lm_head.weight", offsets["model.embed_tokens.weight"]) == offsets["model.embed_tokens.weight"]
