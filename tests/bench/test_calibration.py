"""The bench that calibrates the simulator: the fit, the file that it writes, and the engines that it asks."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from bench.calibration.arguments import arguments
from bench.calibration.fit import Fits, by_load, fit, fit_decode, fit_prefill, per_neighbour
from bench.calibration.measure import measure, whole
from bench.calibration.measurements import (
    Alone,
    DecodePoint,
    Measurements,
    Member,
    PrefillPoint,
    RepeatedLoad,
    Together,
    read_measurements,
)
from bench.calibration.plan import STEPS, CalibrationPlan, make_plan
from bench.calibration.report import markdown, write_measurements
from bench.calibration.rewrite import activation_entries, rewrite, step_entries, worker_entries
from bench.calibration.worker_fit import fit_workers
from bench.shapes import SHAPES
from config.shape import shape_of
from simulator.calibration import H200, Transfer, read_calibration
from simulator.costs import Costs
from simulator.errors import StudyError

MODELS = ("llama-1b", "llama-8b")
PROJECT = Path(__file__).parents[2]
SHAPE = {name: shape_of(SHAPES[name]) for name in MODELS}
TRUE = read_calibration()
"""Its constants are what a fit has to find in what it would predict."""
PER_NEIGHBOUR = (0.2 + 1.0 + 0.5) / 3
"""Of what is predicted."""


def page_of(measured: Measurements) -> str:
    fits = fit(measured)
    return markdown(measured, fits, fit_workers(measured, fits, TRUE))


def time_to_first(costs: Costs, tokens: int) -> float:
    """Seconds of all steps of a prompt."""
    steps = [(min(8192, tokens - before), before) for before in range(0, tokens, 8192)]
    return sum(costs.prefill(costs.prefill_work(*step)) for step in steps)


def predicted() -> Measurements:
    """What the simulator's own formulas say, as if it had been measured."""
    costs = {name: Costs(TRUE, shape, shape.weight_bytes) for name, shape in SHAPE.items()}
    prefill = [
        PrefillPoint(name, tokens, [time_to_first(cost, tokens)])
        for name, cost in costs.items()
        for tokens in (64, 1024, 4096, 8200, 16384)
    ]
    decode = [
        DecodePoint(name, batch, prompt, 65, [cost.decode(batch, int(batch * (prompt + 32.5)))])
        for name, cost in costs.items()
        for batch, prompt in ((2, 64), (8, 64), (32, 64), (2, 2048), (2, 8192), (32, 2048))
    ]
    machine = {"gpus": [], "cpus": 2, "memory_bytes": 2**30}
    loads = [RepeatedLoad("decode 1", 1, 64, 128), RepeatedLoad("prefill", 1, 4096, 1)]
    pair = Together([Member("llama-1b", "decode 1", [1.2], 1.2), Member("llama-8b", "prefill", [2.0], 2.0)])
    group = Together([Member("llama-1b", "decode 1", [], None)] * 2 + pair.members[1:])
    return Measurements(
        machine=machine,
        versions={},
        models={name: SHAPES[name] for name in MODELS},
        chunk=8192,
        loads=loads,
        prefill=prefill,
        decode=decode,
        alone=[Alone("llama-1b", "decode 1", [1.0])],
        together=[pair, group],
    )


# --- the fit --------------------------------------------------------------------------------------------------


def test_the_constants_of_prefill_are_found_again() -> None:
    found = fit_prefill(predicted().prefill, SHAPE, 8192)
    assert found.terms == pytest.approx({name: getattr(TRUE.prefill, name) for name in found.terms})
    assert set(found.terms) == {"seconds_per_layer", "flops_per_s", "attention_flops_per_s"}
    assert found.worst.error == pytest.approx(0, abs=1e-9)


def test_the_constants_of_decode_are_found_again() -> None:
    found = fit_decode(predicted().decode, SHAPE)
    assert found.terms == pytest.approx({name: getattr(TRUE.decode, name) for name in found.terms})
    assert found.terms["longest_kv_bytes_per_s"] < found.terms["kv_bytes_per_s"]
    assert found.worst.error == pytest.approx(0, abs=1e-9)


def test_nothing_is_found_below_zero() -> None:
    points = [
        PrefillPoint("llama-8b", tokens, [tokens**2 * 1e-9 + tokens * 1e-5 - 0.01]) for tokens in (2048, 4096, 8192)
    ]
    assert min(fit_prefill(points, SHAPE, 8192).terms.values()) >= 0


@pytest.mark.parametrize(("layer", "flops"), [(0.0005, 5e14), (0.004, 2e14), (0.0001, 9e14)])
def test_where_launching_kernels_no_longer_hides_the_work_is_found(layer: float, flops: float) -> None:
    calibration = replace(TRUE, prefill=replace(TRUE.prefill, seconds_per_layer=layer, flops_per_s=flops))
    costs = {name: Costs(calibration, shape, shape.weight_bytes) for name, shape in SHAPE.items()}
    lengths = (64, 512, 2048, 4096, 16384)
    points = [
        PrefillPoint(name, tokens, [time_to_first(cost, tokens)]) for name, cost in costs.items() for tokens in lengths
    ]
    found = fit_prefill(points, SHAPE, 8192)
    assert found.terms["seconds_per_layer"] == pytest.approx(layer)
    assert found.terms["flops_per_s"] == pytest.approx(flops)


def test_a_page_names_what_is_off_most() -> None:
    measured = predicted()
    measured.decode[2] = replace(measured.decode[2], steps=[1.5 * measured.decode[2].median])
    page = page_of(measured)
    assert "% (llama-1b, batch 32, prompts of 64)." in page
    assert "off by 0% on average, at most by 0%" in page


def test_a_rate_needs_times_that_grow() -> None:
    points = [PrefillPoint("llama-8b", tokens, [1 / tokens]) for tokens in (64, 256, 1024)]
    with pytest.raises(StudyError, match="prefill do not grow with flops"):
        fit_prefill(points, SHAPE, 8192)


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(StudyError, match="1 measurements are too few"):
        fit_prefill([PrefillPoint("llama-8b", 64, [0.1])], SHAPE, 8192)
    with pytest.raises(StudyError, match="no two engines"):
        per_neighbour([])


def test_slow_downs_count_for_each_other_engine_and_by_load() -> None:
    measured = predicted()
    assert per_neighbour(measured.pairs) == pytest.approx((0.2 + 1.0) / 2)
    assert per_neighbour(measured.groups) == pytest.approx(0.5)
    assert fit(measured).per_neighbour == pytest.approx(PER_NEIGHBOUR)
    assert by_load(measured.pairs) == {("decode 1", "prefill"): 1.2, ("prefill", "decode 1"): 2.0}


def test_only_rounds_within_everybodys_time_count() -> None:
    ones = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]
    others = [(0.5, 2.25), (2.25, 3.5)]
    assert whole([ones, others]) == [[1.0, 1.0], [1.75, 1.25]]


# --- what is written ------------------------------------------------------------------------------------------


def test_a_rewritten_calibration_can_be_read_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(H200.read_text())
    measured = predicted()
    rewrite(path, step_entries(measured, fit(measured), "docs/results/calibration.json"))
    found = read_calibration(path)
    assert found.prefill.flops_per_s == TRUE.prefill.flops_per_s
    assert found.decode.longest_kv_bytes_per_s == TRUE.decode.longest_kv_bytes_per_s
    assert found.decode.measured
    assert "docs/results/calibration.json: one prompt of 64 to 16384 tokens" in found.prefill.source
    assert (found.machine, found.parked, found.mps, found.chunk) == (TRUE.machine, TRUE.parked, TRUE.mps, TRUE.chunk)


def test_a_rewritten_calibration_is_as_easily_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(H200.read_text())
    rewrite(path, {"limit": {"seconds": 0.00001234, "measured": True, "source": "seen: 1234567.0"}})
    assert '"seconds": 12.34e-6,' in path.read_text()
    assert '"source": "seen: 1234567.0"' in path.read_text()
    lines = zip(path.read_text().splitlines(), H200.read_text().splitlines(), strict=True)
    assert sum(one != other for one, other in lines) == 3


def test_the_shipped_calibration_is_what_was_measured(tmp_path: Path) -> None:
    path, raw = tmp_path / "gpu.json", Path("docs/results/calibration.json")
    path.write_text(H200.read_text())
    measured = read_measurements(PROJECT / raw)
    fits = fit(measured)
    workers = fit_workers(measured, fits, TRUE)
    rewrite(path, step_entries(measured, fits, str(raw)) | worker_entries(workers, measured, str(raw)))
    assert path.read_text() == H200.read_text()


def test_a_calibration_is_not_touched_when_it_would_be_none(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    path.write_text(H200.read_text())
    with pytest.raises(StudyError, match="not a calibration"):
        rewrite(path, {"prefill": {"measured": True, "source": "", "seconds": -1}})
    assert path.read_text() == H200.read_text()
    assert list(tmp_path.iterdir()) == [path]


def test_activations_are_taken_as_the_calibration_has_them_now() -> None:
    entries = activation_entries(PROJECT / "docs/results/activation.json")
    for name, entry in entries.items():
        present = getattr(TRUE, name)
        assert entry["seconds"] == pytest.approx(present.seconds, rel=0.05), name
        if isinstance(present, Transfer):
            assert entry["bytes_per_s"] == pytest.approx(present.bytes_per_s, rel=0.01), name
    assert set(entries) == {"parked", "blank", "disk", "park", "start"}


def test_activations_of_one_model_give_no_line(tmp_path: Path) -> None:
    path = tmp_path / "activation.json"
    path.write_text(json.dumps({"rows": [{"model": "m", "bytes": 1, "state": "parked", "weights_s": 1.0}]}))
    with pytest.raises(StudyError, match="two models of different sizes"):
        activation_entries(path)
    path.write_text("[]")
    with pytest.raises(StudyError, match=r"not what bench\.activation writes"):
        activation_entries(path)


def test_measurements_are_read_back_without_their_fits(tmp_path: Path) -> None:
    path, measured = tmp_path / "raw.json", predicted()
    write_measurements(path, measured, fit(measured))
    assert msgspec.to_builtins(read_measurements(path)) == msgspec.to_builtins(measured)
    assert json.loads(path.read_text())["fits"]["per_neighbour"] == pytest.approx(PER_NEIGHBOUR)


def test_the_page_has_a_row_for_each_figure() -> None:
    measured = predicted()
    page = page_of(measured)
    assert "| llama-8b | 16384 |" in page
    assert "| llama-8b | 32 | 2048 |" in page
    assert "| llama-1b decode 1 | 1.20x | 1 | llama-8b prefill | 2.00x | 1 |" in page
    assert "| 3 | llama-1b decode 1 | - | 0 | 2.13x |" in page


# --- the command line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "--out FILE.json is required"),
        (["--out", "x.md"], "ends in .json"),
        (["--models", "llama-8b", "--out", "x.json"], "two different models"),
        (["--models", "llama-8b,gpt", "--out", "x.json"], "gpt is not one of"),
        (["--models", "llama-8b,deepseek-mla", "--out", "x.json"], "no shape"),
        (["--from", "none.json"], "none.json: no such file"),
        (["--out", "x.json", "--activation", "none.json"], "--calibration FILE"),
        (["--out", "x.json", "--room", "0"], "above 0"),
    ],
)
def test_mistakes_are_one_line(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments(given)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_models_are_taken_in_the_order_of_their_size() -> None:
    assert arguments(["--models", "llama-8b,llama-1b", "--out", "x.json"]).models == ["llama-1b", "llama-8b"]


def test_what_was_measured_before_is_fitted_again_without_a_gpu(tmp_path: Path) -> None:
    raw, calibration = tmp_path / "raw.json", tmp_path / "gpu.json"
    write_measurements(raw, predicted())
    calibration.write_text(H200.read_text())
    command: list[str | Path] = [sys.executable, "-m", "bench.calibration", "--from", raw, "--calibration", calibration]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert read_calibration(calibration).decode.kv_bytes_per_s == pytest.approx(TRUE.decode.kv_bytes_per_s, rel=1e-3)
    assert raw.with_suffix(".md").read_text().startswith("# What steps cost")


# --- the plan -------------------------------------------------------------------------------------------------


def test_every_pair_of_sizes_and_loads_is_in_the_plan() -> None:
    plan = make_plan(MODELS, quick=False)
    assert plan.engines == {"llama-1b": 4, "llama-8b": 2}
    assert len(plan.pairs) == 6 * 7 / 2
    assert sorted(map(len, plan.groups)) == [3, 4, 4, 4, 4, 4]
    assert max(it.batch * (it.prompt + STEPS + 1) for it in plan.decode) > 256 * 1024


def test_what_has_no_room_is_left_out() -> None:
    plan = make_plan(MODELS, quick=False, room=4096)
    assert {load.name for load in plan.loads} == {"decode 1"}
    assert max(it.tokens for it in plan.prefill) == 2048
    assert max(it.batch * (it.prompt + STEPS + 1) for it in plan.decode) <= 4096


def test_no_group_needs_more_engines_than_there_are() -> None:
    for quick in (True, False):
        plan = make_plan(("llama-1b", "llama-3b", "llama-8b"), quick=quick)
        for group in plan.groups:
            models = [model for model, _ in group]
            assert all(models.count(model) <= plan.engines[model] for model in models)


# --- the engines ----------------------------------------------------------------------------------------------

FAKE = """
import json, os, subprocess, sys, time

nothing = subprocess.DEVNULL
noise = subprocess.Popen(["sleep", "600"], stdin=nothing, stdout=nothing, stderr=nothing)
if sys.argv[1].endswith(os.environ.get("DIES_AT_START", "nobody")):
    sys.exit("no room for its weights")
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    command = json.loads(line)
    if command["do"] == "repeat":
        if sys.argv[1].endswith(os.environ.get("DIES", "nobody")):
            print("an illegal address", file=sys.stderr)
            os._exit(7)
        if sys.argv[1].endswith(os.environ.get("HANGS", "nobody")):
            print("hangs", file=open(os.environ["HANGS_IN"], "w"))
            time.sleep(600)
        begin = command["until"] - 3
        print(json.dumps({"rounds": [[begin + turn, begin + turn + 1] for turn in range(3)]}), flush=True)
    else:
        size, prompt, times = int(sys.argv[1][-2]), command["prompt"], command["times"]
        step = size * (5e-4 + 1e-8 * command["batch"] * prompt) + 1e-5 * command["batch"]
        seconds = max(0.01, size * 4e-6 * prompt + (1 + size) * 2e-10 * prompt**2)
        steps = [step] * times if command["tokens"] > 1 else []
        print(json.dumps({"seconds": [seconds] * times, "steps": steps}), flush=True)
noise.kill()
"""


@pytest.fixture
def fake(tmp_path: Path) -> tuple[str, ...]:
    """A process that speaks as an engine does, has one of its own, and answers at once."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return (sys.executable, str(script))


def empty(plan: CalibrationPlan) -> Measurements:
    like = predicted()
    return Measurements(machine=like.machine, versions={}, models=like.models, chunk=8192, loads=plan.loads)


async def run(fake: tuple[str, ...], folder: Path) -> tuple[Measurements, int]:
    plan = make_plan(MODELS, quick=True)
    measured, saved = empty(plan), []
    folders = {name: folder / name for name in MODELS}
    await measure(plan, folders, "cpu", folder, measured, lambda: saved.append(1), fake)
    return measured, len(saved)


async def test_every_figure_of_the_plan_is_taken_and_saved(fake: tuple[str, ...], tmp_path: Path) -> None:
    measured, saved = await run(fake, tmp_path)
    plan = make_plan(MODELS, quick=True)
    assert len(measured.prefill) == len(plan.prefill)
    assert len(measured.decode) == len(plan.decode)
    assert len(measured.alone) == 6
    assert (len(measured.pairs), len(measured.groups)) == (len(plan.pairs), len(plan.groups))
    assert {member.slowdown for pair in measured.pairs for member in pair.members} == {1.0}
    assert saved == 1 + len(plan.prefill) + len(plan.decode) + 6 + len(measured.together)
    assert isinstance(fit(measured), Fits)


async def test_an_engine_that_dies_ends_the_run_with_its_last_words(
    fake: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES", "llama-8b")
    with pytest.raises(StudyError, match=r"llama-8b-0 ended with exit code 7; its last output:\nan illegal address"):
        await run(fake, tmp_path)


async def test_an_engine_that_cannot_start_ends_the_run(
    fake: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIES_AT_START", "llama-1b")
    with pytest.raises(StudyError, match=r"llama-1b-\d ended with exit code 1; its last output:\nno room"):
        await run(fake, tmp_path)
    with pytest.raises(StudyError, match="cannot be started"):
        await run((str(tmp_path / "nothing"),), tmp_path)


async def test_a_run_that_is_stopped_leaves_no_engine(
    fake: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is busy, and does not see that its commands have ended. The fixture that looks for processes judges."""
    hangs_in = tmp_path / "hangs"
    os.mkfifo(hangs_in)
    monkeypatch.setenv("HANGS", "llama-1b")
    monkeypatch.setenv("HANGS_IN", str(hangs_in))
    monkeypatch.setattr("bench.calibration.subjects.STOP_GRACE", 0.1)
    task = asyncio.create_task(run(fake, tmp_path))
    assert await asyncio.to_thread(hangs_in.read_text) == "hangs\n"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
