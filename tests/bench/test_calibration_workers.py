"""The bench's measurements of Prism's own workers: the fit, what is written of it, and a gateway that is measured."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from bench.calibration.arguments import arguments
from bench.calibration.fit import fit
from bench.calibration.measurements import Measurements, read_measurements
from bench.calibration.report import markdown, write_measurements
from bench.calibration.rewrite import worker_entries
from bench.calibration.sharing_fit import predicted
from bench.calibration.worker_fit import WorkerFits, fit_decode_host, fit_workers
from bench.calibration.worker_measure import WorkerRun
from bench.calibration.worker_page import WorkerPage, short
from bench.calibration.worker_plan import EVEN, UNEVEN, GroupMember, WorkerPlan, WorkerSeat, make_worker_plan
from bench.calibration.worker_rows import (
    Busy,
    EngineGroup,
    FirstTokens,
    FirstUse,
    Stalls,
    Steps,
    WorkerRows,
    source_key,
)
from bench.subjects.gateway_under_test import serving
from simulator.calibration import H200, Calibration, read_calibration
from simulator.costs import Costs
from simulator.sharing import Contention, sharing_of
from tests.bench.test_calibration import SHAPE
from tests.bench.test_calibration import predicted as predicted_of_engines

PROJECT = Path(__file__).parents[2]
SHIPPED = read_calibration()
TRUE: Calibration = replace(
    SHIPPED,
    decode_host=replace(SHIPPED.decode_host, seconds=2e-3, seconds_per_request=30e-6, seconds_beside=0.5e-3),
    prefill_host=replace(SHIPPED.prefill_host, seconds=6e-3),
    front=replace(SHIPPED.front, seconds=4e-3, seconds_per_token=2e-6),
    first_use=replace(SHIPPED.first_use, seconds=0.2, bytes_per_s=80e9),
    time_slices=replace(SHIPPED.time_slices, slice_seconds=2e-3, switch_seconds=0.15e-3, launch_per_neighbour=0.4),
    mps=replace(SHIPPED.mps, wait_share=0.8, launch_per_neighbour=0.1),
)
"""Its constants are what the fit has to find in what it would predict."""
MODELS = {name: Costs(TRUE, shape, shape.weight_bytes) for name, shape in SHAPE.items()}
SMALL, LARGE = MODELS


def step(model: str, batch: int, beside: int) -> Steps:
    around = Contention(None, (), resident=beside > 0)
    line, _ = MODELS[model].contended_decode(batch, 300 * batch, 300, around)
    return Steps(part="alone", mps=False, model=model, beside=beside, contexts=[300] * batch, seconds=line.first)


def group(mps: bool, *members: tuple[str, int, int]) -> EngineGroup:
    sharing = sharing_of(TRUE, mps=mps)
    asked = EngineGroup(
        part="together",
        mps=mps,
        members=[Busy(model=model, batch=batch, prompt=prompt, seconds=1.0) for model, batch, prompt in members],
    )
    taken = [replace(member, seconds=predicted(member, asked, MODELS, sharing)) for member in asked.members]
    return replace(asked, members=taken)


def groups() -> Iterable[EngineGroup]:
    for mps in (False, True):
        yield group(mps, (SMALL, 1, 256), (SMALL, 1, 256))
        yield group(mps, *[(SMALL, 16, 256)] * 4)
        yield group(mps, (LARGE, 1, 256), (LARGE, 1, 256))
        yield group(mps, (LARGE, 1, 256), (SMALL, 1, 256))
        yield group(mps, (LARGE, 0, 256), (SMALL, 4, 256), (SMALL, 4, 256))


def measured() -> Measurements:
    """What the simulator's own formulas say, as if it had been measured."""
    rows = WorkerRows(groups=list(groups()))
    for model, made in MODELS.items():
        rows.steps += [step(model, batch, beside) for batch in (1, 8, 32) for beside in (0, 8)]
        for tokens in (256, 1024, 4096):
            prefill = made.prefill(made.prefill_work(tokens, 0)) + made.prefill_host
            first = made.front(tokens) + prefill
            stall = Stalls(
                part="idle", mps=False, model=model, beside=8, tokens=tokens, seconds=[prefill + 0.005], plain=0.005
            )
            rows.stalls.append(stall)
            rows.firsts.append(
                FirstTokens(part="idle", mps=False, model=model, beside=8, tokens=tokens, seconds=[first])
            )
        use = FirstUse(
            part="first use", mps=True, model=model, first=0.05 + made.first_use, later=0.05, rehearsed=False
        )
        rows.first_uses += [use, replace(use, first=30.0, rehearsed=True)]
    taken = predicted_of_engines()
    taken.workers = rows
    return taken


def fitted(taken: Measurements) -> WorkerFits:
    return fit_workers(taken, fit(taken), SHIPPED)


# --- the fit --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "within"),
    [
        ("decode_host", 1e-3),
        ("prefill_host", 1e-3),
        ("front", 1e-3),
        ("first_use", 1e-3),
        ("time_slices", 0.05),
        ("mps", 0.02),
    ],
)
def test_the_constants_of_workers_are_found_again(entry: str, within: float) -> None:
    found = fitted(measured()).found[entry]

    assert found.terms == pytest.approx({name: getattr(getattr(TRUE, entry), name) for name in found.terms}, rel=within)


def test_what_was_not_measured_stays_as_it_is() -> None:
    taken = measured()
    taken.workers = WorkerRows(steps=taken.workers.steps)

    workers = fitted(taken)

    assert set(workers.found) == {"decode_host"}
    assert workers.calibration.mps == SHIPPED.mps
    assert set(worker_entries(workers, taken, "raw.json")) == {"decode_host"}


def test_a_host_that_keeps_up_with_its_gpu_costs_nothing() -> None:
    rows = WorkerRows(steps=[replace(step(LARGE, 1, 0), seconds=MODELS[LARGE].decode(1, 300))])

    found = fit_decode_host(rows, SHIPPED, MODELS)

    assert found is not None
    assert set(found.terms.values()) == {0.0}
    assert "no step took longer than its kernels" in found.words


def test_uneven_contexts_tell_how_fast_the_longest_is_read() -> None:
    slow = replace(SHIPPED, decode=replace(SHIPPED.decode, longest_kv_bytes_per_s=100e9))
    costs = Costs(slow, SHAPE[LARGE], SHAPE[LARGE].weight_bytes)
    taken = predicted_of_engines()
    taken.decode = [point for point in taken.decode if point.prompt < 1000]
    before = fit(taken).decode.terms["longest_kv_bytes_per_s"]
    for contexts in (EVEN, UNEVEN, [3000, 100, 100], [9000, 100, 100]):
        seconds = costs.decode(len(contexts), sum(contexts), max(contexts))
        row = Steps(part="uneven", mps=False, model=LARGE, beside=2, contexts=contexts, seconds=seconds)
        taken.workers.steps += [row, replace(row, kv_splits=32, seconds=seconds / 3)]

    after = fit(taken).decode.terms["longest_kv_bytes_per_s"]

    assert abs(after - 100e9) < abs(before - 100e9)
    assert after == pytest.approx(100e9, rel=0.3)


def test_entries_say_what_was_measured_elsewhere() -> None:
    taken = measured()
    taken.workers.sources[source_key("alone", False)] = "Seen on another day."

    entries = worker_entries(fitted(taken), taken, "raw.json")

    assert entries["front"]["source"].endswith("Seen on another day.")
    assert "another day" not in entries["mps"]["source"]
    taken.workers.forget("alone", False)
    assert not taken.workers.sources
    assert {row.part for row in taken.workers.steps} <= {"idle", "together", "uneven"}


def test_what_the_simulator_ships_with_is_near_what_several_workers_took() -> None:
    """Whichever sizes shared a GPU, with MPS or in turns: from one model of it and two or three constants."""
    taken = read_measurements(PROJECT / "docs/results/calibration.json")
    costs = {name: Costs(SHIPPED, shape, shape.weight_bytes) for name, shape in taken.shapes.items()}

    errors = [
        predicted(member, them, costs, sharing_of(SHIPPED, mps=them.mps)) / member.seconds - 1
        for them in taken.workers.groups
        for member in them.members
        if member.batch
    ]

    assert len(errors) >= 48
    assert sum(abs(error) < 0.12 for error in errors) > 0.8 * len(errors)


# --- what is written ------------------------------------------------------------------------------------------


def test_the_page_puts_each_figure_beside_the_simulators() -> None:
    taken = measured()
    workers = fitted(taken)

    page, end = markdown(taken, fit(taken), workers), short(WorkerPage(taken, workers))

    for title in ("Decode steps, one engine busy", "First tokens of an idle engine", "Several at once"):
        assert f"## {title}" in page
    assert "| llama-8b | off | 8 | 32 x 300 | 8 |" in end
    assert "| 4 llama-1b | on | llama-1b decode 16 |" in end


def test_without_workers_measured_the_page_is_that_of_the_engines() -> None:
    taken = predicted_of_engines()

    assert "Prism's own workers" not in markdown(taken, fit(taken), fitted(taken))


def test_rows_are_read_back(tmp_path: Path) -> None:
    path, taken = tmp_path / "raw.json", measured()
    write_measurements(path, taken, fit(taken))

    assert read_measurements(path).workers == taken.workers


def test_workers_measured_before_are_fitted_again_without_a_gpu(tmp_path: Path) -> None:
    raw, calibration = tmp_path / "raw.json", tmp_path / "gpu.json"
    write_measurements(raw, measured())
    calibration.write_text(H200.read_text())

    command: list[str | Path] = [sys.executable, "-m", "bench.calibration", "--from", raw, "--calibration", calibration]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    found = read_calibration(calibration)
    assert found.prefill_host.seconds == pytest.approx(TRUE.prefill_host.seconds, rel=1e-3)
    assert found.front.measured
    assert found.mps.wait_share == pytest.approx(TRUE.mps.wait_share, rel=0.02)


# --- what is measured -----------------------------------------------------------------------------------------


def test_parts_are_measured_in_their_order_and_all_unless_said() -> None:
    assert arguments(["--out", "x.json"]).parts == ["engines", "alone", "idle", "uneven", "together"]
    raw = str(PROJECT / "docs/results/calibration.json")
    assert arguments(["--from", raw]).parts == []
    assert arguments(["--from", raw, "--parts", "together,alone"]).parts == ["alone", "together"]
    with pytest.raises(SystemExit):
        arguments(["--from", raw, "--parts", "together,apart"])


def test_a_plan_has_a_seat_for_everybody() -> None:
    plan = make_worker_plan(["llama-1b", "llama-3b", "llama-8b"])

    assert [seat.model for seat in plan.alone] == ["llama-1b", "llama-3b", "llama-8b"]
    assert [seat.kv_splits for seat in plan.uneven] == [8, 16, 32]
    assert len({seat.name for seat in plan.seats}) == len(plan.seats) == 9
    assert {wanted.seat for group in plan.groups for wanted in group} <= {*plan.seats}
    assert {*plan.alone, *plan.uneven} <= {*plan.seats}
    assert sum(EVEN) == pytest.approx(sum(UNEVEN), abs=len(EVEN))


@pytest.mark.parametrize("models", [["llama-1b", "llama-8b"], ["qwen3-0.6b", "llama-1b", "llama-3b", "llama-8b"]])
def test_two_sizes_or_four_can_be_measured_as_well(models: list[str]) -> None:
    plan = make_worker_plan(models)

    assert [seat.model for seat in plan.alone] == models
    assert {*plan.alone, *plan.uneven} <= {*plan.seats}


async def test_a_gateways_workers_are_measured_part_by_part(tmp_path: Path) -> None:
    """The engine is a timing model, of which is known what has to come out."""
    one, other = WorkerSeat("one", "llama-1b"), WorkerSeat("other", "llama-8b")
    plan = WorkerPlan([one, other], [one], [other], [[GroupMember(one, 2), GroupMember(other, 0)]])
    registry = {
        "pool": {
            "engine": "simulated",
            "workers_per_device": 2,
            "engine_args": {"ttft": "30ms", "tpot": "4ms", "activation": "1ms"},
            "max_running": 64,
        },
        "scheduler": {"policy": "lru", "idle_timeout": "1h"},
        "models": [{"name": seat.name} for seat in plan.seats],
    }
    rows, saved = WorkerRows(sources={source_key("alone", False): "before"}), []

    async with serving(registry, 60.0) as subject:
        run = WorkerRun(subject, plan, rows, lambda: saved.append(1), mps=False, options={})
        await run.measure(["alone", "idle", "uneven", "together"])

    assert run.failures == []
    assert len(saved) == 2 + (1 + 5 + 6) * 2 + 3 + 2
    assert {(row.part, row.beside) for row in rows.steps} == {("alone", 0), ("idle", 1), ("uneven", 0)}
    assert [row.contexts for row in rows.steps if row.part == "uneven"] == [EVEN, UNEVEN]
    for step in rows.steps:
        assert step.seconds > 3e-3
    assert all(row.median > 0.025 for row in rows.firsts)
    assert len(rows.stalls) == 6
    assert [use.model for use in rows.first_uses] == ["llama-1b", "llama-8b"]
    (together,) = rows.groups
    assert [member.batch for member in together.members] == [2, 0]
    assert not rows.sources


async def test_a_step_that_fails_is_told_and_the_others_are_taken(tmp_path: Path) -> None:
    one = WorkerSeat("one", "llama-1b")
    plan = WorkerPlan([one], [], [dataclasses.replace(one, name="nobody"), one], [])
    registry = {
        "pool": {"engine": "simulated", "engine_args": {"ttft": "5ms", "tpot": "4ms"}, "max_running": 64},
        "scheduler": {"policy": "lru"},
        "models": [{"name": "one"}],
    }
    rows = WorkerRows()

    async with serving(registry, 60.0) as subject:
        run = WorkerRun(subject, plan, rows, lambda: None, mps=False, options={})
        await run.measure(["uneven"])

    assert [words.partition(":")[0] for words in run.failures] == ["uneven"] * 3
    assert [row.contexts for row in rows.steps] == [EVEN, UNEVEN]
    assert json.dumps([row.seconds for row in rows.steps])
