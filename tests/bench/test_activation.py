"""The activation benchmark, its models of real shapes, and the soak: whole runs on small or simulated models."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open
from transformers import AutoTokenizer

from bench.activation import command as activation
from bench.activation import copy_interference, idle_cpu
from bench.activation.copy_interference import Gap, Span
from bench.activation.goals import judge
from bench.activation.report import ActivationFigures, command_of, summarize
from bench.activation.rounds import PROMPT_TOKENS, ActivationRound, Eviction, Prompts, until_weights
from bench.load.outcomes import RequestOutcome
from bench.load.workload import Arrival
from bench.shapes import SHAPES, config_of, make_models
from bench.subjects.checkpoints import tensors_of
from bench.swaps import command as swaps
from bench.swaps.run import sources, teardown_figures, waited
from gateway.report import ModelState

PUBLISHED_GB = {"llama-1b": 2.47, "llama-3b": 6.43, "llama-8b": 16.06, "qwen3-0.6b": 1.19, "qwen3-8b-fp8": 9.44}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    make_models(folder, ["llama-8b", "qwen3-8b-fp8"], tiny=True)
    return folder


# --- models ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED_GB)
def test_shapes_have_the_published_sizes(name: str) -> None:
    nbytes = sum(tensor.nbytes for tensor in tensors_of(config_of(name, tiny=False)))
    assert nbytes / 1e9 == pytest.approx(PUBLISHED_GB[name], rel=0.005)


def test_a_checkpoint_has_every_tensor_of_its_config(tiny: Path) -> None:
    config = json.loads((tiny / "qwen3-8b-fp8" / "config.json").read_text())
    with safe_open(tiny / "qwen3-8b-fp8" / "model.safetensors", "pt") as file:
        written = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert written == {tensor.name: tensor.shape for tensor in tensors_of(config)}
    assert written["model.layers.0.mlp.gate_proj.weight_scale_inv"] == (4, 2)


def test_every_token_that_a_model_can_say_has_a_text(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / "llama-8b")
    vocabulary = config_of("llama-8b", tiny=True)["vocab_size"]
    assert len(tokenizer) == vocabulary
    assert all(tokenizer.convert_ids_to_tokens(list(range(vocabulary))))


def test_models_that_are_there_are_kept(tiny: Path) -> None:
    before = (tiny / "llama-8b" / "model.safetensors").stat().st_mtime_ns
    make_models(tiny, ["llama-8b"], tiny=True)
    assert (tiny / "llama-8b" / "model.safetensors").stat().st_mtime_ns == before


def test_prompts_have_the_length_that_the_model_will_count(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny / "llama-8b")
    asked = [{"role": "user", "content": Prompts(tiny).write("llama-8b")}]
    text = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert PROMPT_TOKENS - 8 <= len(tokenizer(text)["input_ids"]) <= PROMPT_TOKENS


# --- bench.activation -----------------------------------------------------------------------------------------


async def test_every_state_is_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--tiny", "--device", "cpu", "--engine", "simulated", "--models", "llama-1b,llama-8b,qwen3-moe"]
    given += ["--set", "pool.engine_args.activation=5ms", "--workers", "3", "--rounds", "1"]
    given += ["--out", str(tmp_path / "activation")]

    assert await activation.command(activation.arguments(given)) == 0

    figures = json.loads((tmp_path / "activation.json").read_text())
    assert {(row["model"], row["state"]) for row in figures["rows"]} == {
        (model, state)
        for model in ("llama-1b", "llama-8b", "qwen3-moe")
        for state in ("disk", "blank", "parked", "other")
    }
    for row in figures["rows"]:
        assert "simulated" in row["phases_s"]
        assert sum(row["phases_s"].values()) == pytest.approx(row["first_token_s"])
        assert 0 < row["ready_s"] <= row["first_token_s"]
        assert row["evict_s"] > 0
    assert {goal["met"] for goal in figures["goals"]} == {None}, "only whole models on a GPU are judged"
    assert "| 8B parked, first token | ≤ 0.36 s |" in (tmp_path / "activation.md").read_text()
    assert (tmp_path / "activation.png").read_bytes().startswith(b"\x89PNG")
    assert "qwen3-moe" in capsys.readouterr().out


@pytest.mark.parametrize("command", [activation, swaps])
def test_models_with_dummy_weights_need_no_disk(tmp_path: Path, command: ModuleType) -> None:
    given = ["--tiny", "--dummy", "--device", "cpu", "--engine", "transformers", "--models", "llama-1b,qwen3-0.6b"]
    given += ["--workers", "1"]
    if command is activation:
        given += ["--reserve", "0", "--states", "disk,parked", "--rounds", "1", "--folder", str(tmp_path)]
    else:
        given += ["--rate", "10", "--duration", "1s", "--prompt-tokens", "16", "--output-tokens", "4"]

    assert asyncio.run(command.command(command.arguments(given))) == 0
    assert not list(tmp_path.rglob("*.safetensors"))


async def test_neighbours_idle_workers_and_kills_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(copy_interference, "QUIET", 0.5)
    monkeypatch.setattr(copy_interference, "REST", 0.0)
    monkeypatch.setattr(idle_cpu, "BEFORE", 0.0)
    monkeypatch.setattr(idle_cpu, "WINDOW", 0.5)
    given = ["--tiny", "--device", "cpu", "--engine", "simulated", "--models", "llama-1b,llama-8b"]
    given += ["--set", "pool.engine_args.activation=50ms", "--workers", "3", "--rounds", "2", "--states", "parked"]
    given += ["--neighbour", "--idle", "--kill", "--out", str(tmp_path / "activation")]

    assert await activation.command(activation.arguments(given)) == 0

    figures = json.loads((tmp_path / "activation.json").read_text())
    found = figures["neighbour"]
    assert {found["model"], found["copied"]} == {"llama-1b", "llama-8b"}
    assert 0 < found["tpot_s"] <= found["longest_gap_s"]
    assert 0 < found["tpot_beside_s"] <= found["longest_gap_beside_s"]
    assert figures["idle_core_share"].keys() == {"active", "parked", "blank"}
    assert [(it["blank"] > 0, it["memory"]) for it in figures["replacements_s"]] == [(True, None)] * 2
    assert "another is blank after" in capsys.readouterr().err


def test_a_token_that_a_copy_held_up_counts_as_beside_it() -> None:
    gaps = [Gap(1.0, 0.5), Gap(1.5, 0.5), Gap(2.0, 0.5), Gap(4.0, 2.0), Gap(4.5, 0.5), Gap(5.1, 0.6)]
    found = copy_interference.figures(gaps, Span(0.9, 2.0), [Span(2.1, 3.0), Span(4.6, 4.7)])
    assert found == {
        "tpot_s": 0.5,
        "longest_gap_s": 0.5,
        "tpot_beside_s": pytest.approx(1.3),
        "longest_gap_beside_s": 2.0,
    }


async def test_a_run_that_is_stopped_reports_what_it_has_measured(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.activation", "--tiny", "--device", "cpu", "--engine", "simulated"]
    command += ["--models", "llama-1b,llama-8b", "--states", "parked,blank", "--workers", "2", "--rounds", "1000"]
    command += ["--set", "pool.engine_args.activation=5ms", "--out", str(tmp_path / "activation")]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stderr is not None
    while b"parked: first token" not in await process.stderr.readline():
        assert process.returncode is None
    process.send_signal(signal.SIGTERM)
    table, _ = await process.communicate()

    assert process.returncode == 130
    assert b"Stopped before its end" in table
    figures = json.loads((tmp_path / "activation.json").read_text())
    assert [(row["model"], row["state"]) for row in figures["rows"]] == [("llama-1b", "parked")]
    assert figures["stopped"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--models", "gpt-5"], "gpt-5 is not one of llama-1b"),
        (["--states", "asleep"], "asleep is not one of cold"),
        (["--models", "llama-1b", "--states", "blank"], "needs two workers and two models"),
        (["--models", "llama-1b,llama-8b", "--states", "other"], "needs 4 models for 4 workers"),
        (["--states", "cold", "--device", "cpu"], "needs a GPU"),
        (["--states", "cold", "--dummy"], "needs weights on disk"),
        (["--models", "llama-1b", "--states", "parked", "--neighbour"], "needs two models"),
        (["--set", "pool"], "expected KEY=VALUE"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        activation.arguments(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def measured_on_a_gpu() -> ActivationFigures:
    """8 billion bytes copied in 0.2 s, of a parked model."""
    phases = {"waiting": 0.01, "weights": 0.23, "prefill": 0.06}
    taken = ActivationRound("llama-8b", "parked", 8 * 10**9, phases, 0.24, 0.24, 0.30, 256, 0.02, 0.01, copy=0.2)
    return ActivationFigures(
        [taken], {"gbps": 50.0, "what": "a test"}, 2**29, {"llama-8b": 2**31}, Eviction(0.1, 0.15), 2**34
    )


def test_a_goal_is_judged_by_what_was_measured() -> None:
    figures = summarize(measured_on_a_gpu(), None, "", real=True)
    met = {goal["name"]: goal["met"] for goal in figures["goals"]}
    assert met["8B parked, first token"] is True
    assert met["8B copy, share of the link"] is False
    assert met["GPU memory of a parked 8B"] is False
    assert met["8B blank, first token"] is None
    assert met["swaps under load"] is None
    (row,) = figures["rows"]
    assert (row["copy_gbps"], row["link_share"]) == (pytest.approx(40), pytest.approx(0.8))


@pytest.mark.parametrize(
    ("phases", "copy", "weights"),
    [
        ({"waiting": 1, "kv_limit": 2, "resume": 3, "copy": 4, "prefill": 5}, 4.5, 10.5),
        ({"waiting": 1, "teardown": 2, "arguments": 3, "model": 4, "kv_cache": 5, "copy": 0}, 6.0, 9.0),
        ({"load": 1, "weights": 2, "tokenizer": 3}, None, 3),
        ({"waiting": 1, "prefill": 2}, None, None),
    ],
)
def test_weights_are_in_place_when_their_copy_ends(
    phases: dict[str, float], copy: float | None, weights: float | None
) -> None:
    assert until_weights(phases, copy) == weights


def test_the_command_in_a_report_can_be_run_again() -> None:
    given = ["--models", "llama-1b,llama-8b", "--states", "disk,parked", "--set", "pool.max_running=32"]
    given += ["--fill-kv", "20GiB", "--decode", "--neighbour", "--idle", "--kill"]
    given += ["--device", "cuda:1", "--rounds", "3"]
    program, *again = command_of(activation.arguments(given)).removeprefix("python -m ").split()
    assert program == "bench.activation"
    assert activation.arguments(again) == activation.arguments(given)


def test_goals_about_swaps_come_from_the_soak() -> None:
    figures = summarize(measured_on_a_gpu(), None, "", real=True)
    soak = {"swaps": 210, "load": {"all": {"failed": 1}}, "waited": {"llama-8b": {"other": {"p50": 0.5, "p95": 2.0}}}}
    judged = judge(figures, soak, real=True)
    met = {goal["name"]: goal["met"] for goal in judged}
    assert met["swaps under load"] is met["8B other, first token p50"] is True
    assert met["8B other, first token p95"] is met["failed requests over them"] is False
    assert met["GPU memory lost over them"] is None


# --- bench.swaps ----------------------------------------------------------------------------------------------


async def test_a_soak_counts_swaps_and_compares_memory_at_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--tiny", "--device", "cpu", "--engine", "simulated", "--models", "llama-1b,llama-8b,qwen3-moe"]
    given += ["--workers", "2", "--rate", "20", "--duration", "2s", "--prompt-tokens", "16", "--output-tokens", "4"]
    given += ["--random-swaps", "5", "--json", str(tmp_path / "swaps.json")]

    assert await swaps.command(swaps.arguments(given)) == 0

    figures = json.loads((tmp_path / "swaps.json").read_text())
    assert figures["load"]["all"]["requests"] == figures["load"]["all"]["completed"] > 0
    assert figures["swaps"] > 0
    assert figures["worker_deaths"] == 0
    held = figures["at_rest_before"]["host_by_process"]
    assert {"gateway", "worker 0", "worker 1"} <= held.keys()
    assert figures["at_rest_before"]["host"] == sum(held.values()) > 0
    assert "activations" in capsys.readouterr().out


def test_a_request_waited_from_the_state_that_its_model_was_in_when_it_was_sent() -> None:
    sights = [(10.0, {"a": "active"}), (11.0, {"a": "parked"}), (12.0, {"a": "active"})]
    sent = [
        RequestOutcome(Arrival(at, "a", 1, 1), sent=at, first_token=at + 0.5, ended=at + 1) for at in (0.5, 1.5, 2.5)
    ]
    found = waited(sent, 10.0, sights)
    assert {model: list(states) for model, states in found.items()} == {"a": ["parked"], "all": ["parked"]}
    assert found["a"]["parked"]["p50"] == pytest.approx(0.5)


def test_teardowns_are_told_whole_and_by_phase() -> None:
    figures = teardown_figures([{"forget": 0.1, "memory": 0.2}, {"forget": 0.3, "memory": 0.2}])
    assert figures["count"] == 2
    assert figures["seconds"]["p50"] == pytest.approx(0.4)
    assert {name: spread["p50"] for name, spread in figures["phases"].items()} == pytest.approx(
        {"forget": 0.2, "memory": 0.2}
    )


def test_other_is_when_no_more_than_the_reserve_is_blank() -> None:
    states = {"a": ModelState.IN_HOST_MEMORY, "b": ModelState.ON_DISK, "c": ModelState.PARKED}
    assert sources(states, blank=1) == {"a": "other", "b": "disk", "c": "parked"}
    assert sources(states, blank=2)["a"] == "blank"


def test_every_shape_has_a_tiny_variant() -> None:
    assert all(sum(t.nbytes for t in tensors_of(config_of(name, tiny=True))) < 20 * 10**6 for name in SHAPES)
