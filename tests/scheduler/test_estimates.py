"""What the scheduler learns from events, and what it expects before it has seen any."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from config.errors import ConfigError
from gateway.profile import read_profile
from scheduler.actions import Activate, Stage
from scheduler.events import Activated, Counted, FirstToken, Staged, Stats, WorkerBlank
from scheduler.learned.estimates import Demand, Estimates
from scheduler.learned.profile import Fit, ModelProfile, Profile
from tests.rig.fake_pool import GIB, Bench

TPOT = 0.05
"""Seconds per token of the models here, alone."""


def demand(bench: Bench, name: str = "a") -> Demand:
    return bench.scheduler.state.models[name].demand


def estimates(bench: Bench) -> Estimates:
    return bench.scheduler.state.estimates


def side_by_side(*names: str, **fields: Any) -> Bench:
    """Models that are active on one device."""
    bench = Bench(names, workers=len(names), **fields)
    for name in names:
        bench.finish(bench.serve(name), tokens=1)
    return bench


def begin(bench: Bench, name: str) -> int:
    """A request that is past its first token."""
    number = bench.serve(name)
    bench.tell(FirstToken(number))
    return number


def answer(bench: Bench, name: str, *, tpot: float, tokens: int = 21) -> None:
    number = begin(bench, name)
    bench.now += tpot * (tokens - 1)
    bench.finish(number, tokens=tokens)


# --- what clients want ----------------------------------------------------------------------------------------


def test_requests_that_arrive_are_the_arrival_rate_served_or_not() -> None:
    bench = Bench(["a", "b"], window=60.0)
    for _ in range(30):
        bench.ask("a")
        bench.now += 2
    assert demand(bench).arrivals.per_second(bench.now) == pytest.approx(0.5, rel=0.1)
    assert demand(bench, "b").arrivals.per_second(bench.now) == 0.0
    bench.now += 60
    assert demand(bench).arrivals.per_second(bench.now) == 0.0


def test_the_token_rate_has_admitted_prompts_and_what_workers_say_they_decoded() -> None:
    bench = side_by_side("a", "b")
    bench.now += 1000
    bench.tell(Stats(0, 0, 0, 0, 0, 400))
    before = demand(bench).tokens.per_second(bench.now)
    for decoded in (450, 500):
        bench.tell(Stats(0, 1, 0, 0, 0, decoded))
    bench.serve("a", prompt=200)
    assert demand(bench).tokens.per_second(bench.now) - before == pytest.approx((100 + 200) / 60)
    assert demand(bench, "b").tokens.per_second(bench.now) == 0.0


def test_what_waits_is_not_in_the_token_rate_yet() -> None:
    bench = Bench(["a"], max_running=1)
    bench.serve("a", prompt=100)
    before = demand(bench).tokens.per_second(bench.now)
    waiting = bench.ask("a", prompt=1000)
    assert demand(bench).tokens.per_second(bench.now) == before
    bench.finish(waiting - 1)
    assert demand(bench).tokens.per_second(bench.now) == pytest.approx(11 * before)


def test_a_worker_that_died_begins_to_count_its_tokens_anew() -> None:
    bench = Bench(["a"])
    bench.finish(bench.serve("a"))
    bench.tell(Stats(0, 1, 0, 0, 0, 500))
    bench.die(0)
    bench.tell(WorkerBlank(0))
    bench.serve("a")
    bench.tell(Stats(0, 0, 0, 0, 0, 0))
    before = demand(bench).tokens.per_second(bench.now)
    bench.tell(Stats(0, 0, 0, 0, 0, 60))
    assert demand(bench).tokens.per_second(bench.now) - before == pytest.approx(60.0)


def test_the_length_of_prompts_and_answers_is_learned() -> None:
    bench = side_by_side("a")
    for _ in range(60):
        number = bench.serve("a", prompt=300)
        bench.finish(number, tokens=80)
    assert demand(bench).prompt_tokens == pytest.approx(300, rel=0.02)
    assert demand(bench).output_tokens == pytest.approx(80, rel=0.02)


# --- what it takes --------------------------------------------------------------------------------------------


def test_seconds_per_token_are_those_of_answers_without_busy_neighbours() -> None:
    bench = side_by_side("a", "b")
    answer(bench, "a", tpot=TPOT)
    assert demand(bench).tpot == pytest.approx(TPOT)
    neighbour = begin(bench, "b")
    answer(bench, "a", tpot=3 * TPOT)
    assert demand(bench).tpot == pytest.approx(TPOT), "it was not alone"
    bench.finish(neighbour, tokens=1)
    for _ in range(60):
        answer(bench, "a", tpot=2 * TPOT)
    assert demand(bench).tpot == pytest.approx(2 * TPOT, rel=0.02)


def test_an_answer_of_one_token_says_nothing_of_the_time_per_token() -> None:
    bench = side_by_side("a")
    number = begin(bench, "a")
    bench.now += 1
    bench.finish(number, tokens=1)
    assert demand(bench).tpot == 0.0


def test_a_busy_worker_of_another_device_is_no_neighbour() -> None:
    bench = Bench(["a", "b"], devices=("cuda:0", "cuda:1"))
    begin(bench, "b")
    bench.finish(bench.serve("a"), tokens=1)
    answer(bench, "a", tpot=TPOT)
    assert demand(bench).tpot == pytest.approx(TPOT)


def answers_beside_neighbours(bench: Bench, true: float, *, leave: bool) -> None:
    """A token takes (1 + slow-down x neighbours that are busy) times as long; of those, some may leave half-way."""
    random = Random(1)
    answer(bench, "a", tpot=TPOT)
    for _ in range(150):
        beside = [begin(bench, name) for name in "bc" if random.random() < 0.6]
        number = begin(bench, "a")
        for token in range(20):
            if leave and beside and token == 10 and random.random() < 0.5:
                bench.finish(beside.pop(), tokens=1)
            bench.now += TPOT * (1 + true * len(beside))
        bench.finish(number, tokens=21)
        bench.finish(*beside, tokens=1)


@pytest.mark.parametrize("true", [0.2, 0.6, 1.5])
def test_the_slow_down_by_neighbours_converges_to_the_true_one(true: float) -> None:
    bench = side_by_side("a", "b", "c", profile=Profile(slowdown=1.0))
    answers_beside_neighbours(bench, true, leave=False)
    assert estimates(bench).slowdown == pytest.approx(true, rel=0.01)
    assert demand(bench).tpot == pytest.approx(TPOT), "what neighbours did is not in it"


def test_the_slow_down_is_about_right_where_neighbours_leave_during_an_answer() -> None:
    bench = side_by_side("a", "b", "c", profile=Profile(slowdown=1.0))
    answers_beside_neighbours(bench, 0.6, leave=True)
    assert estimates(bench).slowdown == pytest.approx(0.6, rel=0.15)


def test_nothing_is_learned_of_neighbours_before_the_speed_alone_is_known() -> None:
    bench = side_by_side("a", "b", profile=Profile(slowdown=0.7))
    begin(bench, "b")
    answer(bench, "a", tpot=TPOT)
    assert estimates(bench).slowdown == 0.7
    assert demand(bench).tpot == 0.0


def test_the_time_of_a_prefill_is_learned_as_a_line_by_tokens() -> None:
    bench = side_by_side("a")
    for prompt in (100, 400, 1600, 200, 3200):
        number = bench.serve("a", prompt=prompt)
        bench.now += 0.02 + 0.001 * prompt
        bench.tell(FirstToken(number))
        bench.finish(number, tokens=1)
    assert demand(bench).prefill.at(1000) == pytest.approx(1.02, rel=1e-3)
    assert demand(bench).prefill.at(0) == pytest.approx(0.02, rel=1e-2)


def test_the_exact_number_of_prompt_tokens_is_what_counts() -> None:
    bench = side_by_side("a")
    number = bench.serve("a", prompt=10)
    bench.tell(Counted(number, 500))
    bench.now += 1
    bench.tell(FirstToken(number))
    assert demand(bench).prefill.at(500) == pytest.approx(1.0)


def test_a_first_token_that_others_may_have_delayed_is_no_observation() -> None:
    bench = side_by_side("a", "b")
    first = begin(bench, "a")
    second = bench.serve("a")
    bench.finish(first, tokens=1)
    bench.now += 5
    bench.tell(FirstToken(second))
    bench.finish(second, tokens=1)
    assert demand(bench).prefill.at(10) == 0.0, "its worker ran another one, or had just begun it"
    begin(bench, "b")
    beside = bench.serve("a")
    bench.now += 5
    bench.tell(FirstToken(beside))
    assert demand(bench).prefill.at(10) == 0.0, "its neighbour was busy"


def activation(bench: Bench, name: str, seconds: float) -> None:
    """The model is activated, and parked again."""
    number = bench.ask(name)
    bench.settle(but=Activate)
    begun = bench.take(Activate)
    bench.tell(Activated(begun.worker, name, seconds, bench.held["active"]))
    bench.finish(number)
    bench.evict(name)
    bench.settle()


def test_activations_are_learned_by_bytes_and_by_where_they_begin() -> None:
    sizes = {"small": GIB, "large": 4 * GIB}
    bench = Bench(sizes, weights=sizes, host_memory=10 * GIB, workers=2)
    assert estimates(bench).activation(GIB, parked=True) == 0.0
    for name, size in sizes.items():
        activation(bench, name, 10.0 + size / GIB)
    assert estimates(bench).activation(2 * GIB, parked=False) == pytest.approx(12.0, rel=0.01)
    assert estimates(bench).activation(2 * GIB, parked=True) == pytest.approx(12.0, rel=0.01), "none was seen yet"
    for name, size in sizes.items():
        activation(bench, name, 0.1 * size / GIB)
    assert estimates(bench).activation(2 * GIB, parked=True) == pytest.approx(0.2, rel=0.01)
    assert estimates(bench).activation(2 * GIB, parked=False) == pytest.approx(12.0, rel=0.01)


def test_loads_from_disk_are_learned_by_bytes() -> None:
    sizes = {"small": GIB, "large": 4 * GIB}
    bench = Bench(sizes, weights=sizes, host_memory=10 * GIB, workers=2)
    for name, size in sizes.items():
        bench.ask(name)
        bench.take(Stage)
        bench.now += 0.5 * size / GIB
        bench.tell(Staged(name, size))
    assert estimates(bench).disk.at(2 * GIB) == pytest.approx(1.0)


# --- what is known before anything was seen -------------------------------------------------------------------


def test_a_profile_is_what_is_expected_before_anything_was_seen() -> None:
    known = ModelProfile(prefill=Fit(0.01, 0.001), tpot=TPOT, output_tokens=300)
    profile = Profile(
        parked=Fit(0.1, 1 / GIB), blank=Fit(5.0, 2 / GIB), disk=Fit(0.0, 4 / GIB), slowdown=0.4, models={"a": known}
    )
    bench = Bench(["a", "b"], profile=profile)
    assert estimates(bench).activation(10 * GIB, parked=True) == pytest.approx(10.1, rel=0.01)
    assert estimates(bench).activation(10 * GIB, parked=False) == pytest.approx(25.0, rel=0.01)
    assert estimates(bench).disk.at(10 * GIB) == pytest.approx(40.0, rel=0.01)
    assert estimates(bench).slowdown == 0.4
    assert demand(bench).prefill.at(1000) == pytest.approx(1.01)
    assert (demand(bench).tpot, demand(bench).output_tokens) == (TPOT, 300)
    assert (demand(bench, "b").tpot, demand(bench, "b").prefill.at(1000)) == (0.0, 0.0)


def test_what_is_seen_outweighs_the_profile() -> None:
    wrong = ModelProfile(prefill=Fit(0.0, 0.01), tpot=10 * TPOT)
    bench = side_by_side("a", profile=Profile(models={"a": wrong}))
    for _ in range(150):
        for prompt in (100, 2000):
            number = bench.serve("a", prompt=prompt)
            bench.now += 0.001 * prompt
            bench.tell(FirstToken(number))
            bench.now += 20 * TPOT
            bench.finish(number, tokens=21)
    assert demand(bench).prefill.at(1000) == pytest.approx(1.0, rel=0.05)
    assert demand(bench).tpot == pytest.approx(TPOT, rel=0.02)


def test_a_profile_is_read_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{"slowdown": 0.5, "parked": {"per_unit": 1e-9}, "models": {"a": {"tpot": 0.02}}}')
    assert read_profile(file) == Profile(slowdown=0.5, parked=Fit(per_unit=1e-9), models={"a": ModelProfile(tpot=0.02)})


def test_without_a_file_nothing_is_known() -> None:
    assert read_profile(None) == Profile()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not a profile"),
        ('{"slowdown": "much"}', r"not a profile: .*\$\.slowdown"),
        ('{"models": {"a": {"prefill": 3}}}', r"not a profile: .*\$\.models\[\.\.\.\]\.prefill"),
        (b"\xff{}", "not a profile"),
    ],
)
def test_a_file_that_is_no_profile_is_named_with_what_is_wrong(
    tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=f"profile.json: {complaint}"):
        read_profile(file)


def test_a_profile_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read: No such file"):
        read_profile(tmp_path / "none.json")
