"""Series of simulated runs: in several processes, under other objectives, and drawn."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from matplotlib.image import imread

from config.registry import Slo
from gateway.cli.main import main
from simulator.models import costs_of
from simulator.objectives import alone
from simulator.outcomes import SimulationResult
from simulator.report import Setting
from simulator.series import Series, set_up
from simulator.simulation import Simulation
from simulator.traces.trace import Trace, TraceRequest
from simulator.typical import typical
from tests.simulator.test_simulator import (
    CALIBRATION,
    GIB,
    alone_tpot,
    costs,
    first_token_alone,
    pinned,
    registry,
    write_registry,
)

MODELS = {"a": "llama-8b", "b": "llama-1b", "c": "llama-3b"}
SYNTHETIC = ("--synthetic", "zipf:models=3,rate=2,duration=60s")
PNG = b"\x89PNG"


def simulate(*given: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *map(str, given)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def process(*given: str | Path) -> subprocess.Popen[str]:
    """The command as a process of its own, so that what it starts ends with it."""
    command = [sys.executable, "-m", "gateway.cli", "simulate", *map(str, given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


# --- several processes ------------------------------------------------------------------------------------------


def test_runs_in_parallel_give_what_runs_one_after_another_give(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, one, two = write_registry(tmp_path, MODELS, workers=2), tmp_path / "1.json", tmp_path / "2.json"
    series: list[str | Path] = ["--registry", path, *SYNTHETIC, "--rate-scale", "4,1,2", "--gpus", "2,1"]

    with process(*series, "--jobs", "2", "--json", two) as parallel:
        printed, errors = parallel.communicate(timeout=60)
    assert simulate(*series, "--json", one) == 0

    assert parallel.returncode == 0, errors
    assert two.read_bytes() == one.read_bytes()
    assert printed == capsys.readouterr().out
    assert [(row["gpus"], row["rate_scale"]) for row in json.loads(two.read_bytes())] == [
        (2, 4.0),
        (2, 1.0),
        (2, 2.0),
        (1, 4.0),
        (1, 1.0),
        (1, 2.0),
    ]


@pytest.mark.parametrize("to_all", [True, False], ids=["from the terminal", "to the first alone"])
def test_an_interrupt_ends_every_process_at_once(tmp_path: Path, to_all: bool) -> None:
    path = write_registry(tmp_path, MODELS, workers=2)
    # once the short run is told of, the others are under way
    series = ["--synthetic", "zipf:models=3,rate=10,duration=20m", "--rate-scale", "0.001,20,30", "--jobs", "2"]

    with process("--registry", path, *series) as running:
        assert running.stderr is not None
        assert any("rate x0.001" in line for line in running.stderr)
        crew = psutil.Process(running.pid).children(recursive=True)
        assert len(crew) >= 2
        if to_all:
            os.killpg(running.pid, signal.SIGINT)
        else:
            running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)

    assert running.returncode == 130
    assert "Traceback" not in errors
    assert psutil.wait_procs(crew, timeout=10)[1] == []


# --- objectives -------------------------------------------------------------------------------------------------


def test_the_base_of_objectives_is_how_fast_a_model_is_alone(tmp_path: Path) -> None:
    made = registry(tmp_path, {"a": "llama-8b", "b": "llama-1b", "silent": "llama-3b"}, workers=2)
    trace = Trace.of([TraceRequest(1.0, "a", 300, 50), TraceRequest(1.0, "b", 100, 20)], duration=10.0)

    based = alone(made, trace, costs_of(made.models, CALIBRATION), CALIBRATION, capacity=70 * GIB)

    a, b, silent = (model.slo for model in based.models)
    assert a.ttft == pytest.approx(first_token_alone("llama-8b", 300))
    assert a.tpot == pytest.approx(alone_tpot("llama-8b", 300, 50))
    assert b.ttft == pytest.approx(first_token_alone("llama-1b", 100))
    assert b.tpot == pytest.approx(alone_tpot("llama-1b", 100, 20))
    assert silent == Slo()
    assert [model.pinned for model in based.models] == [False, False, False]


@pytest.mark.parametrize(
    ("ttft", "tpot", "expected"), [(None, None, (3.0, 3.0)), (5.0, None, (5.0, 3.0)), (5.0, 2.0, (5.0, 2.0))]
)
def test_a_scale_of_one_objective_stands_in_place_of_the_scale_of_both(
    tmp_path: Path, ttft: float | None, tpot: float | None, expected: tuple[float, float]
) -> None:
    made = registry(tmp_path, {"a": "llama-1b"})
    series = Series(made, Trace.of([]), {}, CALIBRATION, 70 * GIB, ttft_scale=ttft, tpot_scale=tpot)

    (model,) = set_up(series, Setting("lru", 1, 1.0, 3.0, 0)).models

    assert (model.slo.ttft / Slo().ttft, model.slo.tpot / Slo().tpot) == pytest.approx(expected)


def test_objectives_of_models_alone_are_said_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write_registry(tmp_path, {"a": "llama-8b"}), tmp_path / "out.json"
    series: list[str | Path] = [
        "--registry",
        path,
        "--synthetic",
        "zipf:models=1,rate=2,duration=60s,on=1,pause=0",
        "--json",
        out,
    ]

    assert simulate(*series, "--slo-base", "alone", "--slo-scale", "0.1,100") == 0

    tight, loose = json.loads(out.read_bytes())
    assert tight["ttft_attainment"] < 0.1
    assert loose["ttft_attainment"] == loose["tpot_attainment"] == 1.0
    assert "alone: a: TTFT p95" in capsys.readouterr().err


def test_a_scale_that_changes_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_registry(tmp_path, {"a": "llama-1b"})
    scales = ["--slo-scale", "1,2", "--ttft-scale", "5", "--tpot-scale", "2"]

    assert simulate("--registry", path, *SYNTHETIC, *scales) == 2
    assert "--slo-scale: has no effect" in capsys.readouterr().err


# --- the page of plots ------------------------------------------------------------------------------------------


def test_a_series_is_drawn(tmp_path: Path) -> None:
    path, picture = write_registry(tmp_path, MODELS, workers=2), tmp_path / "page.png"
    series: list[str | Path] = [
        "--registry",
        path,
        *SYNTHETIC,
        "--rate-scale",
        "1,2",
        "--slo-scale",
        "1,2",
        "--gpus",
        "1,2",
    ]

    assert simulate(*series, "--policy", "lru,prism-paper", "--png", picture) == 0

    assert picture.read_bytes().startswith(PNG)
    drawn = imread(picture)[..., :3]
    assert min(drawn.shape[:2]) > 500
    assert np.mean(drawn.min(axis=2) < 0.9) > 0.01


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("--png", "nowhere/page.png", "there is no folder"),
        ("--png", "page.txt", "ends in .png"),
        ("--json", "", "a file"),
    ],
)
def test_what_cannot_be_written_is_said_before_anything_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, name: str, said: str
) -> None:
    path = write_registry(tmp_path, {"a": "llama-1b"})

    assert simulate("--registry", path, *SYNTHETIC, option, tmp_path / name if name else "") == 2
    assert said in capsys.readouterr().err


def test_without_a_policy_the_registrys_is_simulated(tmp_path: Path) -> None:
    path = write_registry(tmp_path, {"a": "llama-1b"}, scheduler={"policy": "swap"})

    assert simulate("--registry", path, *SYNTHETIC, "--json", tmp_path / "runs.json") == 0
    assert [run["policy"] for run in json.loads((tmp_path / "runs.json").read_text())] == ["swap"]


def test_one_run_of_each_policy_stands_for_the_series() -> None:
    settings = [
        Setting(policy, gpus, rate, slo, 0)
        for policy in ("lru", "prism")
        for gpus in (4, 2)
        for rate in (0.25, 2.0, 0.5)
        for slo in (3.0, 1.0)
    ]

    assert typical(settings) == [Setting("lru", 2, 2.0, 1.0, 0), Setting("prism", 2, 2.0, 1.0, 0)]


# --- memory over time -------------------------------------------------------------------------------------------


def run_pinned(folder: Path, memory_every: float | None) -> SimulationResult:
    made = pinned(registry(folder, {"a": "llama-8b"}))
    simulation = Simulation(
        made, costs_of(made.models, CALIBRATION), CALIBRATION, capacity=70 * GIB, memory_every=memory_every
    )
    return simulation.run(Trace.of([TraceRequest(1.5, "a", 3000, 2000)], duration=12.0))


def test_memory_is_looked_at_as_often_as_asked_for(tmp_path: Path) -> None:
    made, result = costs("llama-8b"), run_pinned(tmp_path, 2.0)

    held = [sample.held["a"] - made.weight_bytes for sample in result.memory]
    gaps = np.diff([sample.at for sample in result.memory])
    assert gaps == pytest.approx([2.0] * len(gaps), abs=1.0)
    assert held[0] == 0
    assert max(held) > made.mapped(3000)
    assert all(nbytes % made.page_bytes == 0 for nbytes in held)


def test_memory_is_not_looked_at_unasked(tmp_path: Path) -> None:
    assert run_pinned(tmp_path, None).memory == []
