"""A part of `make chaos`: faults under load, of almost every kind, cost nobody more than is promised."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.faults import Hit, kind_of, kinds
from tests.chaos.record import Record, Records, table
from tests.chaos.run import Batch, Plan, judge
from tests.chaos.traffic import COMPLETIONS, Outcome, Question, Verdict
from tests.rig.sglang_models import NEEDS_SGLANG

SEED = 7
SOON_OVER = {
    "transformers": (
        "front killed", "loader killed", "loader stopped", "clients leave", "clients cut bodies", "disk full",
        "pipe full", "file gone",
    ),
    "sglang": ("front killed", "rank killed"),
}  # fmt: skip
"""Others take longer, such as those that end the template, whose imports take seconds."""


@pytest.mark.parametrize("engine", ["transformers", pytest.param("sglang", marks=[pytest.mark.sglang, NEEDS_SGLANG])])
def test_faults_cost_nobody_more_than_is_promised(demo_folder: Path, short_path: Path, engine: str) -> None:
    around = range(len(kinds(engine)))
    numbers = [number for number in around if kind_of(engine, SEED, number).name in SOON_OVER[engine]]
    records: list[Record] = []
    batch = Batch(Plan(engine, SEED, numbers), demo_folder, short_path, records.append)
    batch.run()
    assert not batch.problem, "\n".join((*batch.log[-80:], batch.problem))
    assert len(records) == len(numbers)
    assert sum(bool(record.victim) for record in records) > len(numbers) / 2, "faults have found no victims"
    assert sum(record.restarted for record in records) > 0


# --- what is checked ------------------------------------------------------------------------------------------------


def outcome(verdict: Verdict, detail: str, *, worker: int = 0, model: str = "a") -> Outcome:
    return Outcome(1, Question(model, COMPLETIONS, "Once", 3), verdict, detail, worker)


def test_streams_may_end_with_their_own_worker_only() -> None:
    hit = Hit("worker 1", frozenset({1}), range(1, 2))
    assert judge(hit, [outcome("ended", '{"code":"aborted"}', worker=1)], 1) == []
    assert len(judge(hit, [outcome("ended", '{"code":"aborted"}', worker=0)], 1)) == 1
    assert len(judge(hit, [outcome("ended", '{"code":"engine_error"}', worker=1)], 1)) == 1


def test_requests_may_be_refused_for_their_own_model_only() -> None:
    hit = Hit("a file of a", unavailable=frozenset({"a"}))
    assert judge(hit, [outcome("refused", '{"code":"model_unavailable"}', model="a")], 0) == []
    assert len(judge(hit, [outcome("refused", '{"code":"model_unavailable"}', model="b")], 0)) == 1
    assert len(judge(hit, [outcome("refused", '{"code":"draining"}', model="a")], 0)) == 1


@pytest.mark.parametrize("verdict", ["lost", "wrong"])
def test_nothing_excuses_a_lost_or_a_wrong_answer(verdict: Verdict) -> None:
    hit = Hit("everybody", frozenset({0, 1}), range(2), frozenset({"a"}))
    assert len(judge(hit, [outcome(verdict, "")], 1)) == 1


def test_a_worker_dies_of_nothing_but_the_fault() -> None:
    assert judge(Hit("clients"), [], 0) == []
    assert judge(Hit("clients"), [], 1) == ["1 workers were restarted, expected range(0, 1)"]
    assert len(judge(Hit("worker 1", frozenset({1}), range(1, 2)), [], 0)) == 1


# --- which faults, and the sum of several runs ----------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["transformers", "sglang"])
def test_each_kind_comes_as_often_as_the_others_and_in_the_same_order_with_the_same_seed(engine: str) -> None:
    several = range(3 * len(kinds(engine)))
    names = [kind_of(engine, SEED, number).name for number in several]
    assert set(Counter(names).values()) == {3}
    assert names == [kind_of(engine, SEED, number).name for number in several]
    assert names != [kind_of(engine, SEED + 1, number).name for number in several]


def test_a_run_goes_on_where_another_was_cut_off_and_sums_up_both(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    first = Records(file)
    assert first.next_number("sglang", SEED) == 0
    first.add(record(0, "front killed", restarted=1))
    second = Records(file)
    assert second.next_number("sglang", SEED) == 1
    second.add(record(1, "front killed", restarted=1))
    assert second.next_number("sglang", SEED + 1) == second.next_number("transformers", SEED) == 0
    _, row, total = table(Records(file).all).splitlines()
    assert row.split() == ["sglang:", "front", "killed", "2", "0", "20", "2", "0", "0", "0", "0", "0"]
    assert total.split() == ["all", "2", "0", "20", "2", "0", "0", "0", "0", "0"]


def test_a_fault_without_a_victim_does_not_count_as_one() -> None:
    _, row, _ = table([record(0, "disk full", victim="")]).splitlines()
    assert row.split()[3:5] == ["0", "1"]


def record(number: int, kind: str, *, victim: str = "somebody", restarted: int = 0) -> Record:
    return Record(
        engine="sglang", seed=SEED, number=number, kind=kind, victim=victim, seconds=1.0, requests=10, ended=0,
        refused=0, lost=0, wrong=0, restarted=restarted,
    )  # fmt: skip
