"""The comparison on real processes: one gateway, one policy after another, measured beside simulated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.evaluation.__main__ import main
from bench.evaluation.real import traces
from bench.evaluation.real.judging import Ended, by_model, measured, shares, simulated
from bench.evaluation.real.traces import SHORTEST, TraceSettings, open_trace
from bench.load.outcomes import RequestOutcome
from bench.load.workload import Arrival
from bench.shapes import SHAPES
from config.registry import Slo
from gateway.demo_models import NAMES
from scheduler.replay.recorded import Recording
from scheduler.replay.replay import replay
from simulator.outcomes import SimulatedAnswer
from simulator.traces.trace import TraceRequest

KEYS = {
    "gpus", "models", "device_memory_gib", "mps", "policy", "trace", "rate_scale", "repeat", "requests", "failed",
    "ttft", "tpot", "both", "simulated_ttft", "simulated_tpot", "simulated_both",
}  # fmt: skip
SHARES = [key for key in KEYS if key.removeprefix("simulated_") in ("ttft", "tpot", "both")]
TRACE = "steady:models=3,rate=15,duration=10,seed=1"
RUN = ["--real", "--traces", TRACE, "--duration", "1s", "--warm-up", "1s", "--max-tokens", "4"]


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """Three models that need no weights, but have sizes, on two devices."""
    models = []
    for name in ("llama-1b", "llama-3b", "llama-8b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(SHAPES[name]))
        models.append({"name": name, "shape": f"{name}.json"})
    pool = {
        "engine": "simulated",
        "devices": ["cpu", "cpu:1"],
        "workers_per_device": 4,
        "device_memory": "73GiB",
        "engine_args": {"activation": "1ms", "tpot": "1ms"},
    }
    file = tmp_path / "registry.yaml"
    file.write_text(yaml.safe_dump({"pool": pool, "models": models}))
    return file


def compare(*given: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*RUN, *map(str, given)])
    code: int = ended.value.code  # type: ignore[assignment]
    return code


def read(folder: Path, name: str = "real") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return content


# --- whole comparisons ----------------------------------------------------------------------------------------


def test_every_policy_is_measured_beside_what_was_simulated(registry: Path, tmp_path: Path) -> None:
    details = tmp_path / "details"
    given = ["--registry", registry, "--policies", "prism,space,lru", "--memory", "73GiB,40GiB"]
    assert compare(*given, "--out", tmp_path / "out", "--details", details) == 0

    content = read(tmp_path / "out")
    assert [(row["device_memory_gib"], row["policy"]) for row in content["rows"]] == [
        (memory, policy) for memory in (73, 40) for policy in ("prism", "space", "lru")
    ]
    for row, run in zip(content["rows"], content["runs"], strict=True):
        assert set(row) == KEYS
        assert (row["gpus"], row["models"], row["mps"], row["failed"]) == (2, 3, False, 0)
        assert all(0 <= row[key] <= 1 for key in SHARES)
        assert sum(model["requests"] for model in run["models"].values()) == row["requests"] > 0
        assert run["prompt_tokens"]["exact"] == run["answer_tokens"]["exact"] == 1
    page = (tmp_path / "out/real.md").read_text()
    assert f"| {TRACE} | off | 40 GiB | space |" in page
    assert len(list(details.glob("*.log"))) == 2, "each memory has a gateway, the policies share one"


def test_each_runs_decisions_and_requests_are_kept(registry: Path, tmp_path: Path) -> None:
    details = tmp_path / "details"
    assert compare("--registry", registry, "--policies", "space", "--out", tmp_path / "out", "--details", details) == 0

    (entries,) = (json.loads(file.read_text()) for file in details.glob("space-*.json"))
    assert {entry["device"] for entry in entries} <= {"cpu", "cpu:1"}
    assert {entry["failure"] for entry in entries} == {None}
    for file in details.glob("*.jsonl"):
        with file.open("rb") as lines:
            recording = Recording(file.name, lines)
            assert replay(recording.header.scheduler(), recording).difference is None


def test_what_was_cut_off_is_resumed(registry: Path, tmp_path: Path) -> None:
    given = ["--registry", registry, "--policies", "space,lru", "--out", tmp_path / "out"]
    assert compare(*given, "--budget", "1s") == 0
    assert read(tmp_path / "out")["rows"] == []

    assert compare(*given[:2], "--policies", "space", "--out", tmp_path / "out", "--resume") == 0
    (first,) = read(tmp_path / "out")["rows"]
    assert compare(*given, "--resume") == 0

    content = read(tmp_path / "out")
    assert [row["policy"] for row in content["rows"]] == ["space", "lru"]
    assert content["rows"][0] == first
    assert len(content["commands"]) == 3


def test_predictions_are_those_of_the_comparison(registry: Path, tmp_path: Path) -> None:
    """They are a file of their own, made without a gateway."""
    given = ["--registry", registry, "--policies", "lru", "--out", tmp_path / "out"]
    assert compare(*given, "--simulate-only") == 0
    assert compare(*given) == 0

    (predicted,) = read(tmp_path / "out", "real_predicted")["rows"]
    (row,) = read(tmp_path / "out")["rows"]
    assert predicted["both"] is None
    for key in SHARES:
        if key.startswith("simulated_"):
            assert predicted[key] == row[key]


def test_real_models_are_compared_too(demo_folder: Path, tmp_path: Path) -> None:
    models = [{"name": name, "path": str(demo_folder / name)} for name in NAMES[:2]]
    file = tmp_path / "registry.yaml"
    file.write_text(yaml.safe_dump({"pool": {"workers_per_device": 3}, "models": models}))
    given = ["--registry", file, "--policies", "prism,lru", "--max-prompt-tokens", "100"]
    assert compare(*given, "--out", tmp_path / "out") == 0

    content = read(tmp_path / "out")
    assert [row["failed"] for row in content["rows"]] == [0, 0]
    assert [run["workers_replaced"] for run in content["runs"]] == [0, 0]
    assert all(run["prompt_tokens"]["exact"] == 1 for run in content["runs"])


def test_a_gateway_that_does_not_start_is_a_fault_with_its_reason(registry: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(registry.read_text())
    content["pool"]["kv_minimum"] = "80GiB"
    registry.write_text(yaml.safe_dump(content))

    assert compare("--registry", registry, "--out", tmp_path / "out") == 1


def test_mps_is_refused_where_registries_have_no_word_on_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.evaluation.real.arguments.can_share_by_mps", lambda: False)
    assert compare("--mps", "on,off") == 2
    assert "no pool.mps" in capsys.readouterr().err


# --- parts ----------------------------------------------------------------------------------------------------

SLOS = {"m": Slo(ttft=1.0, tpot=0.1)}


def outcome(*, at: float, ttft: float, tpot: float, error: str | None = None) -> RequestOutcome:
    found = RequestOutcome(Arrival(at, "m", 5, 3), sent=at, error=error)
    for number in range(3):
        found.token(at + ttft + number * tpot)
    found.ended = found.last_token
    return found


def test_measured_and_simulated_requests_are_judged_alike() -> None:
    """The same four: one before the judged part, one that meets both, one that is slow, one that fails."""
    times = [(0.0, 9.0, 9.0, ""), (10.0, 0.5, 0.05, ""), (11.0, 0.5, 0.3, ""), (12.0, 0.5, 0.05, "aborted")]
    real = [outcome(at=at, ttft=ttft, tpot=tpot, error=error or None) for at, ttft, tpot, error in times]
    virtual = [
        SimulatedAnswer(TraceRequest(at, "m", 5, 3), at + ttft, at + ttft + 2 * tpot, error or "finished")
        for at, ttft, tpot, error in times
    ]

    ours, theirs = measured(real, 10.0), simulated(virtual, 10.0)

    assert len(ours) == len(theirs) == 3
    assert shares(ours, SLOS) == shares(theirs, SLOS)
    assert shares(ours, SLOS).ttft == pytest.approx(2 / 3)
    assert shares(ours, SLOS).both == pytest.approx(1 / 3)
    figures = by_model(ours, theirs, SLOS)["m"]
    assert (figures["requests"], figures["failed"]) == (3, 1)
    assert figures["tpot_p50_s"] == pytest.approx(figures["simulated_tpot_p50_s"])


def test_nobody_asked_is_no_share() -> None:
    assert shares([], SLOS).both is None
    assert by_model([Ended("m", 0.1, 0.0)], [], SLOS)["m"]["tpot_p50_s"] is None


def test_a_trace_is_for_the_models_that_are_served_and_in_their_time(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    rows = ["0,rare,5,900", "1,often,4000,3", "2,often,50,3", "9,often,50,3"]
    file.write_text("\n".join(["arrival_s,model,prompt_tokens,output_tokens", *rows, ""]))
    wanted = TraceSettings(["a", "b"], 1.0, seconds=4.0, time_scale=0.5, max_prompt_tokens=1000, max_tokens=100)

    trace = open_trace(str(file), wanted)

    assert list(trace) == [
        TraceRequest(0.0, "b", SHORTEST, 100),
        TraceRequest(0.5, "a", 1000, 3),
        TraceRequest(1.0, "a", 50, 3),
    ]
    assert trace.duration == 4.0


def test_a_traces_name_is_short_and_says_if_its_time_was_changed() -> None:
    assert traces.name_of("zipf-5", 1.0) == "zipf-5"
    assert traces.name_of("/some/where/t.csv", 0.5) == "t.csv in 0.5x the time"
    assert traces.name_of("steady:models=2", 1.0) == "steady:models=2"
