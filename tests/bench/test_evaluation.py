"""The evaluation of policies: its searches, its scenarios, its figures, and a small one from end to end."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench.evaluation import __main__ as command
from bench.evaluation.cases import Attempt, Case, attempt, holds, judged, open_case
from bench.evaluation.goals import GOALS, goal_table
from bench.evaluation.placements import best_placement
from bench.evaluation.registries import registry_of, simulable, workers_on
from bench.evaluation.report import NAME, NOTES
from bench.evaluation.run import CaseOutcome
from bench.evaluation.scenarios import HEADLINE, SCENARIOS, ModelGroup, Scenario, chosen
from bench.evaluation.search import fewest, highest
from bench.evaluation.sizes import SIZES
from bench.evaluation.summary import Spread, gpus, rate, ratio
from bench.evaluation.trials import PolicyResult
from bench.evaluation.workloads import AZURE, PRISM_27, make, missing
from config.shape import shape_of
from simulator.calibration import read_calibration
from simulator.errors import StudyError
from simulator.outcomes import SimulatedAnswer, SimulationResult
from simulator.report import RunRow
from simulator.traces.trace import TraceRequest

CALIBRATION = read_calibration()
TINY = Scenario(
    "tiny",
    "two models on a GPU",
    (ModelGroup("llama-1b", 1), ModelGroup("llama-3b", 1)),
    gpus=1,
    rate=2.0,
    workloads=("zipf", "prism-27"),
    measures=("rate", "gpus", "goodput"),
    seeds=(1,),
    duration=40.0,
    warm_up=10.0,
)


# --- searches ---------------------------------------------------------------------------------------------------


def counted(holds: Callable[[float], bool]) -> tuple[Callable[[float], bool], list[float]]:
    asked: list[float] = []

    def ask(value: float) -> bool:
        asked.append(value)
        return holds(value)

    return ask, asked


@pytest.mark.parametrize("threshold", [0.04, 0.3, 1.0, 1.7, 19.0])
def test_the_search_finds_where_a_rate_ceases_to_hold(threshold: float) -> None:
    holds, asked = counted(lambda scale: scale <= threshold)

    found = highest(holds, start=1.0, precision=1.05, least=1 / 32, most=32)

    assert found is not None
    assert threshold / 1.05 <= found <= threshold
    assert len(asked) <= 11
    assert len(set(asked)) == len(asked)


def test_the_search_ends_where_nothing_holds_or_everything_does() -> None:
    assert highest(lambda scale: False, start=1.0, precision=1.05, least=1 / 32, most=32) is None
    assert highest(lambda scale: True, start=1.0, precision=1.05, least=1 / 32, most=32) == 32


def test_the_search_asks_for_nothing_below_its_end() -> None:
    holds, asked = counted(lambda scale: scale <= 0.1)

    assert highest(holds, start=1.0, precision=1.05, least=0.2, most=32) is None
    assert min(asked) == 0.25


@pytest.mark.parametrize("needed", range(1, 17))
@pytest.mark.parametrize("start", [1, 3, 16])
def test_the_search_finds_the_fewest_gpus(needed: int, start: int) -> None:
    assert fewest(lambda number: number >= needed, start=start, most=16) == needed


def test_no_number_of_gpus_may_be_enough() -> None:
    holds, asked = counted(lambda number: False)

    assert fewest(holds, start=5, most=16) is None
    assert max(asked) == 16


def test_the_best_placement_is_best_on_the_whole_trace() -> None:
    screened = {seed: 0.5 + 0.001 * seed for seed in range(100)}
    whole: list[int] = []

    def on_the_whole(seed: int) -> float:
        whole.append(seed)
        return 1.0 if seed == 97 else 0.9

    assert best_placement(screened.__getitem__, on_the_whole, 100) == 97
    assert sorted(whole) == [95, 96, 97, 98, 99]


def test_of_equal_placements_the_first_is_taken() -> None:
    assert best_placement(lambda seed: 1.0, lambda seed: 1.0, 200) == 0


# --- scenarios --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "billions"), [("qwen3-1.7b", 1.72), ("qwen3-4b", 4.02), ("qwen3-14b", 14.8)])
def test_sizes_are_those_of_published_models(size: str, billions: float) -> None:
    assert shape_of(SIZES[size]).weight_bytes / 2e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
def test_a_scenario_is_simulated_whole_but_for_models_of_several_gpus(scenario: Scenario, tmp_path: Path) -> None:
    registry = registry_of(scenario, tmp_path)

    kept, left_out = simulable(registry, CALIBRATION)

    names = [model.name for model in registry.models]
    assert len(set(names)) == scenario.number_of_models
    assert set(left_out) <= {model.name for model in registry.models if model.tensor_parallel > 1}
    assert [model.name for model in kept.models] == [name for name in names if name not in left_out]
    assert scenario.gpus * workers_on(scenario.gpus, len(names)) > len(names)
    assert scenario.warm_up < scenario.duration


def test_the_mix_of_fifty_eight_models_is_the_papers() -> None:
    billions = {group: shape_of(SIZES[group.size]).weight_bytes / 2e9 for group in SCENARIOS["fifty-eight"].models}

    def between(low: float, high: float) -> list[ModelGroup]:
        return [group for group, size in billions.items() if low <= size < high]

    assert [sum(group.number for group in between(*bounds)) for bounds in ((1, 3.5), (3.5, 9), (9, 31), (31, 72))] == [
        43,
        8,
        3,
        4,
    ]
    assert all(group.tensor_parallel <= 4 for group in between(9, 31))
    assert all(4 <= group.tensor_parallel <= 8 for group in between(31, 72))


def test_a_model_that_cannot_be_simulated_is_left_out_with_the_reason(tmp_path: Path) -> None:
    registry = registry_of(TINY, tmp_path)
    (tmp_path / "llama-3b.json").write_text('{"architectures": ["Mystery"]}')

    kept, left_out = simulable(registry, CALIBRATION)

    assert [model.name for model in kept.models] == ["llama-1b-a0"]
    assert list(left_out) == ["llama-3b-b0"]
    assert "its architecture is Mystery" in left_out["llama-3b-b0"]


def test_nothing_that_can_be_simulated_is_an_error(tmp_path: Path) -> None:
    registry = registry_of(replace(TINY, models=(ModelGroup("llama-3b", 1),)), tmp_path)
    (tmp_path / "llama-3b.json").write_text("{}")

    with pytest.raises(StudyError, match="llama-3b-a0: "):
        simulable(registry, CALIBRATION)


def test_scenarios_are_chosen_by_name_in_their_own_order() -> None:
    assert [scenario.name for scenario in chosen(["rotating", "eight"], is_quick=False)] == ["eight", "rotating"]
    assert [scenario.name for scenario in chosen(None, is_quick=True)] == list(SCENARIOS)
    assert all(len(scenario.seeds) == 1 for scenario in chosen(None, is_quick=True))


# --- workloads --------------------------------------------------------------------------------------------------


def recorded(folder: Path) -> Path:
    """Recorded traces in small: an hour of Azure's two services, and 27 models."""
    folder.mkdir(exist_ok=True)
    for name in AZURE:
        rows = "".join(f"{at}.5,100,10\n" for at in range(0, 3600, 2))
        (folder / name).write_bytes(gzip.compress(f"arrival_s,prompt_tokens,output_tokens\n{rows}".encode()))
    rows = "".join(f"{at / 4},m{at * at % 27},50,20\n" for at in range(2400))
    (folder / PRISM_27).write_bytes(gzip.compress(f"arrival_s,model,prompt_tokens,output_tokens\n{rows}".encode()))
    return folder


NAMES = [f"model-{letter}" for letter in "abcdefgh"]


@pytest.mark.parametrize("workload", ["zipf", "steady", "rotating", "prism-27", "azure"])
def test_a_workload_asks_for_the_scenarios_models_at_its_rate(workload: str, tmp_path: Path) -> None:
    scenario = replace(TINY, duration=600.0, rate=5.0)
    folder = recorded(tmp_path)

    trace, words = make(workload, scenario, NAMES, 1, folder)
    again, _ = make(workload, scenario, NAMES, 1, folder)
    other, _ = make(workload, scenario, NAMES, 2, folder)

    requests = list(trace)
    assert requests == list(again) != list(other)
    assert {request.model for request in requests} <= set(NAMES)
    assert len(requests) / trace.duration == pytest.approx(5.0, rel=0.2)
    assert words


def test_popularity_is_dealt_to_other_models_by_another_seed(tmp_path: Path) -> None:
    favourites = [next(iter(make("steady", TINY, NAMES, seed, None)[0].requests_by_model())) for seed in range(6)]

    assert len(set(favourites)) > 2


def test_what_a_workload_lacks_is_said(tmp_path: Path) -> None:
    (tmp_path / AZURE[0]).touch()

    assert missing("zipf", None) == []
    assert missing("azure", tmp_path) == [AZURE[1]]
    assert missing("prism-27", None) == [PRISM_27]


# --- one case ---------------------------------------------------------------------------------------------------


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return open_case(TINY, "zipf", 1, calibration=CALIBRATION, traces=None, folder=tmp_path)


def test_requests_of_the_warm_up_are_not_judged() -> None:
    answers = [
        SimulatedAnswer(TraceRequest(at, "a", 10, 10), at + 1, at + 2, "finished") for at in (0.0, 5.0, 9.9, 10.0, 15.0)
    ]

    found = judged(SimulationResult(answers, 20.0, 3, 1), 10.0)

    assert [answer.asked.at for answer in found.answers] == [10.0, 15.0]
    assert (found.seconds, found.activations) == (10.0, 3)


def test_an_attempt_is_judged_after_the_warm_up_and_a_shorter_one_from_the_start(case: Case) -> None:
    whole = attempt(case, Attempt("lru", 1, 1.0), lambda text: None)
    short = attempt(case, Attempt("lru", 1, 1.0, seconds=20.0), lambda text: None)

    times = [request.at for request in case.series.trace]
    assert whole.requests == sum(at >= TINY.warm_up for at in times)
    assert short.requests == sum(at < 20.0 for at in times)
    assert (whole.policy, whole.gpus) == ("lru", 1)


@pytest.mark.parametrize(
    ("ttft", "tpot", "held"), [(0.99, 0.99, True), (1.0, 0.989, False), (0.98, 1.0, False), (None, None, True)]
)
def test_a_rate_is_held_when_both_objectives_are(ttft: float | None, tpot: float | None, held: bool) -> None:
    assert holds(RunRow("lru", 1, 1.0, 1.0, 0, 100, ttft, tpot, 1.0, 0, 0)) is held


# --- figures ----------------------------------------------------------------------------------------------------


def outcomes(case: Case, *found: Sequence[PolicyResult]) -> list[CaseOutcome]:
    return [CaseOutcome(case, (), each) for each in found]


def test_policies_are_compared_case_by_case(case: Case) -> None:
    made = outcomes(
        case,
        [PolicyResult("1", "prism", scale=3.0, gpus=2), PolicyResult("1", "space", scale=1.0, gpus=6)],
        [PolicyResult("2", "prism", scale=2.0, gpus=2), PolicyResult("2", "space", scale=1.0, gpus=None)],
        [PolicyResult("3", "prism", scale=1.0, gpus=None), PolicyResult("3", "space", scale=None, gpus=None)],
    )

    rates, numbers = ratio(made, rate, "prism", "space"), ratio(made, gpus, "space", "prism")

    assert rates.values == (3.0, 2.0, math.inf)
    assert rates.text() == "2.50x (2.00 to 3.00, 2 cases); the other reaches nothing in 1"
    assert (numbers.values, numbers.undecided) == ((3.0, math.inf), 1)
    assert numbers.mean == 3.0
    assert ratio(made, rate, "prism", "swap").text() == "not measured"


def test_a_spread_says_in_how_many_cases_there_was_nothing() -> None:
    assert Spread.of([2.0, 4.0, math.inf]).text() == "3 (2 to 4); none in 1 of 3"
    assert Spread.of([math.inf]).text() == "none"
    assert Spread.of([5.0]).text() == "5"
    assert Spread.of([]).text() == "-"


def test_goals_are_judged_by_the_scenario_that_they_are_about(case: Case) -> None:
    eight = replace(case, scenario=SCENARIOS["eight"])
    unequal = replace(case, scenario=SCENARIOS["unequal"])
    made = [
        *outcomes(eight, [PolicyResult("1", "prism", scale=3.0), PolicyResult("1", "space", scale=1.0)]),
        *outcomes(
            unequal,
            [
                PolicyResult("2", "prism", goodput={HEADLINE: 9.0}),
                PolicyResult("2", "static", goodput={HEADLINE: 10.0}),
            ],
        ),
    ]

    lines = goal_table(made).splitlines()

    assert len(lines) == 2 + len(GOALS)
    against_space, against_static = (
        next(line for line in lines if f"`prism` against `{other}`" in line and "eight" in line)
        for other in ("space", "static")
    )
    assert "3.00x" in against_space
    assert "| reached |" in against_space
    assert "| not measured |" in against_static
    assert "| MISSED |" in next(line for line in lines if line.startswith("| unequal"))


# --- the whole --------------------------------------------------------------------------------------------------


def test_an_evaluation_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "chosen", lambda names, *, is_quick: [TINY])
    out = tmp_path / "results"
    out.mkdir()
    (out / NOTES).write_text("Why it is so.\n")
    options = ["--reference", "lru", "--policies", "lru,static", "--quick", "--traces", str(tmp_path / "none")]

    command.main([*options, "--out", str(out)])

    said = capsys.readouterr()
    assert f"tiny: no prism-27, for want of {PRISM_27}" in said.err
    assert [Path(line).name for line in said.out.splitlines()] == [f"{NAME}.json", f"{NAME}.md", f"{NAME}.png"]
    page, figures = (out / f"{NAME}.md").read_text(), json.loads((out / f"{NAME}.json").read_bytes())
    assert "Why it is so." in page
    assert (out / NOTES).read_text() == "Why it is so.\n"
    assert "| `static` |" in page
    assert "zipf:models=2" in page
    (found,) = figures["cases"]
    assert [each["policy"] for each in found["found"]] == ["lru", "static"]
    assert {run["policy"] for run in found["fixed_by"]} == {"lru"}
    assert all("placement_seed" in run for run in found["found"][1]["runs"])
    assert (out / f"{NAME}.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--only", "nine"], "expected of eight"),
        (["--policies", "fifo"], "expected of prism"),
        (["--reference", "fifo"], "--reference: expected one of prism"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_said(
    given: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(given)

    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err
