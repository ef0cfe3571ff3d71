"""What a step takes in the simulator besides its kernels alone: long contexts, hosts, neighbours, the way there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from simulator.engine import VirtualEngine, VirtualRequest
from simulator.models import has_mps
from simulator.profile import profile_of
from simulator.sharing import ALONE, Contention, Sharing, StepLoad, sharing_of
from simulator.step_times import StepTimes, longer
from simulator.traces.trace import Trace, TraceRequest
from tests.simulator.test_simulator import (
    CALIBRATION,
    GIB,
    costs,
    drain,
    first_token_alone,
    pinned,
    registry,
    simulate,
)

SLICES, MPS = (sharing_of(CALIBRATION, mps=mps) for mps in (False, True))
ASKED = 1000
"""Tokens of context of each request."""


def load(model: str, batch: int = 1) -> StepLoad:
    """Of a model that decodes."""
    made = costs(model)
    return made.decode_load(made.decode(batch, batch * ASKED), batch, batch * ASKED, resident=True)


def step(model: str, *others: str, sharing: Sharing = SLICES, batch: int = 1) -> float:
    """Seconds of a decode step beside others that decode."""
    beside = Contention(sharing, [[load(other, batch) for other in others]], resident=bool(others))
    line, _ = costs(model).contended_decode(batch, batch * ASKED, ASKED, beside)
    return line.first


# --- lines ------------------------------------------------------------------------------------------------------


def test_the_longer_of_two_lines_holds_until_the_other_one_is() -> None:
    steep, flat = StepTimes(1.0, 0.5), StepTimes(2.2)

    assert longer(steep, flat) == longer(flat, steep) == StepTimes(2.2, 0.0, 3)
    assert longer(StepTimes(2.5, 0.5), flat) == StepTimes(2.5, 0.5)
    assert longer(StepTimes(2.2, 0.5), flat) == StepTimes(2.2, 0.5)


# --- an engine by itself ----------------------------------------------------------------------------------------


def test_one_long_context_slows_the_whole_batch() -> None:
    made = costs("llama-8b")
    even, uneven = made.decode(13, 13_200), made.decode(13, 13_200, longest=6000)

    assert uneven > 1.3 * even
    assert uneven == pytest.approx(made.decode(1, 6000), rel=0.05)


def test_a_batch_as_long_as_its_longest_gets_shorter_again_when_that_is_complete() -> None:
    engine = VirtualEngine(costs("llama-8b"), 16, 10 * GIB)
    engine.submit(VirtualRequest(0, 0.0, 6000, 20))
    for number in range(1, 13):
        engine.submit(VirtualRequest(number, 1.0, 600, 200))
    steps, now = [], 0.0
    while (end := engine.begin(now)) is not None and engine.run is not None:
        if not engine.run.pieces:
            steps.append(engine.run.first)
        now = end
        engine.complete()

    assert steps[0] > 1.3 * steps[-1]


def test_a_small_model_decodes_no_faster_than_its_host() -> None:
    host = CALIBRATION.decode_host
    busy = host.seconds + 8 * host.seconds_per_request

    assert costs("llama-1b").decode(8, 8000) < busy
    assert step("llama-1b", batch=8) == pytest.approx(busy)
    assert step("llama-8b", batch=8) == costs("llama-8b").decode(8, 8000) > busy


def test_workers_that_have_models_cost_a_host_bound_step_time_though_they_are_idle(tmp_path: Path) -> None:
    small = pinned(registry(tmp_path, {"a": "llama-1b"}))
    two = pinned(registry(tmp_path, {"a": "llama-1b", "b": "llama-8b"}, workers=2, pool={"blank_reserve": 0}))
    asked = Trace.of([TraceRequest(0.0, "a", 100, 50)])

    (alone,), (beside,) = (simulate(made, asked).answers for made in (small, two))

    assert alone.tpot is not None
    assert beside.tpot == pytest.approx(alone.tpot + CALIBRATION.decode_host.seconds_beside)


def test_steps_that_become_longer_than_their_host_are_as_long_as_one_by_one() -> None:
    """A run ends where the other of two times becomes the longer one."""
    made = costs("llama-1b")
    host = replace(CALIBRATION.decode_host, seconds=made.decode(1, 3000), seconds_per_request=0.0, seconds_beside=0.0)
    bound = type(made)(replace(CALIBRATION, decode_host=host), made.shape, made.weight_bytes)
    engine = VirtualEngine(bound, 4, GIB)
    engine.submit(VirtualRequest(1, 1.0, 2900, 201))

    prefill = engine.begin(0.0)
    assert prefill is not None
    engine.complete()
    finished = drain(engine, prefill)[1]

    steps = sum(max(host.seconds, made.decode(1, 2900 + said)) for said in range(1, 201))
    assert finished - prefill == pytest.approx(steps)


def test_the_first_prefill_of_a_model_in_a_process_takes_longer_unless_it_is_warm(tmp_path: Path) -> None:
    made = pinned(registry(tmp_path, {"a": "llama-8b"}))
    asked = Trace.of([TraceRequest(float(at), "a", 100, 5) for at in range(2)])

    first, second = simulate(made, asked, warmed=False).answers
    warm, _ = simulate(made, asked, warmed=True).answers

    assert second.ttft == pytest.approx(first_token_alone("llama-8b", 100))
    assert warm.ttft == pytest.approx(second.ttft)
    assert first.ttft == pytest.approx(first_token_alone("llama-8b", 100) + costs("llama-8b").first_use)


def test_a_process_that_serves_a_model_again_has_used_it(tmp_path: Path) -> None:
    made = registry(tmp_path, {"a": "llama-1b", "b": "llama-8b"}, scheduler={"idle_timeout": "5s"})
    asked = Trace.of([TraceRequest(20.0 * at, model, 100, 5) for at, model in enumerate("abab")])

    ttfts = [answer.ttft or 0.0 for answer in simulate(made, asked, warmed=False).answers]

    assert ttfts[1] - ttfts[3] == pytest.approx(costs("llama-8b").first_use)
    assert ttfts[2] < ttfts[0]


def test_what_lies_in_front_of_an_engine_delays_a_request_and_nobody_else(tmp_path: Path) -> None:
    slow = replace(CALIBRATION, front=replace(CALIBRATION.front, seconds=1.0))
    made = pinned(registry(tmp_path, {"a": "llama-8b"}))
    asked = Trace.of([TraceRequest(0.0, "a", 100, 100), TraceRequest(0.3, "a", 100, 100)])

    usual = simulate(made, asked).answers
    delayed = simulate(made, asked, calibration=slow).answers

    late = 1.0 - CALIBRATION.front.seconds
    for one, other in zip(usual, delayed, strict=True):
        assert one.ttft is not None
        assert other.ttft == pytest.approx(one.ttft + late, abs=0.01)
        assert other.tpot == pytest.approx(one.tpot, rel=0.01)


# --- engines that share a GPU -----------------------------------------------------------------------------------


def test_mps_lets_two_small_engines_run_at_once() -> None:
    alone, turns, together = step("llama-1b"), step("llama-1b", "llama-1b"), step("llama-1b", "llama-1b", sharing=MPS)

    assert turns > 1.7 * alone
    assert together < 0.9 * turns
    assert together == pytest.approx(CALIBRATION.decode_host.seconds + CALIBRATION.decode_host.seconds_beside, rel=0.1)


def test_mps_cannot_read_memory_faster_than_it_is() -> None:
    """Two large engines are bound by it: together they take as long as both, one after the other, without latencies."""
    made = costs("llama-8b")
    reading = load("llama-8b").busy

    assert step("llama-8b", "llama-8b", sharing=MPS) > 2 * reading
    assert step("llama-8b", "llama-8b", sharing=MPS) < 2 * made.decode(1, ASKED)


def test_a_small_model_beside_a_large_one_suffers_more_than_that_does() -> None:
    for sharing in (SLICES, MPS):
        small = step("llama-1b", "llama-8b", sharing=sharing) / costs("llama-1b").decode(1, ASKED)
        large = step("llama-8b", "llama-1b", sharing=sharing) / costs("llama-8b").decode(1, ASKED)
        assert small > 1.2 * large > 1.2


def test_each_neighbour_more_costs_more() -> None:
    for sharing in (SLICES, MPS):
        taken = [step("llama-3b", *["llama-8b"] * count, sharing=sharing) for count in range(4)]
        assert taken == sorted(taken)
        assert taken[3] > 2 * taken[1] * 0.8


def test_a_host_bound_step_hides_a_neighbour() -> None:
    """Neither feels the other while its host is slower than both."""
    slow = dataclasses.replace(load("llama-1b"), host=0.1)
    for sharing in (SLICES, MPS):
        waiting = sharing.waiting(load("llama-8b"), [slow])
        assert waiting < 0.05 * sharing.waiting(load("llama-8b"), [load("llama-1b")])
        beside = sharing.stretched(StepTimes(slow.gpu), slow, sharing.waiting(slow, [load("llama-8b")]))
        assert beside.first < slow.host


def test_launching_a_prefill_is_slower_beside_neighbours_unless_by_mps() -> None:
    made, others = costs("llama-8b"), [load("llama-1b")] * 2
    alone, turns, together = (
        made.contended_prefill(made.prefill_work(100, 0), beside)
        for beside in (ALONE, *(Contention(sharing, [others], resident=True) for sharing in (SLICES, MPS)))
    )

    assert turns == pytest.approx(alone * (1 + 2 * CALIBRATION.time_slices.launch_per_neighbour))
    assert together == pytest.approx(alone * (1 + 2 * CALIBRATION.mps.launch_per_neighbour))


def test_a_decode_step_waits_longer_while_a_neighbour_prefills(tmp_path: Path) -> None:
    made = pinned(registry(tmp_path, {"a": "llama-1b", "b": "llama-8b"}, workers=2, pool={"blank_reserve": 0}))
    asked = [TraceRequest(0.0, "a", 100, 400)]

    for mps in (False, True):
        quiet, _ = simulate(made, Trace.of([*asked, TraceRequest(9.0, "b", 8000, 1)]), mps=mps).answers
        beside, _ = simulate(made, Trace.of([*asked, TraceRequest(0.1, "b", 8000, 1)]), mps=mps).answers
        assert quiet.tpot is not None
        assert beside.tpot is not None
        assert beside.tpot > 1.1 * quiet.tpot


def test_a_trace_is_served_faster_with_mps(tmp_path: Path) -> None:
    made = pinned(registry(tmp_path, {"a": "llama-1b", "b": "llama-8b"}, workers=2, pool={"blank_reserve": 0}))
    asked = Trace.of([TraceRequest(0.0, "a", 100, 500), TraceRequest(0.0, "b", 100, 500)])

    turns, together = (simulate(made, asked, mps=mps).answers for mps in (False, True))

    for one, other in zip(turns, together, strict=True):
        assert one.tpot is not None
        assert other.tpot is not None
        assert other.tpot < one.tpot


def test_a_scheduler_is_told_what_a_neighbour_costs() -> None:
    models = {name: costs(name) for name in ("llama-1b", "llama-8b")}
    turns, together = (profile_of(models, CALIBRATION, mps=mps).slowdown for mps in (False, True))

    assert 0.3 < together < turns < 2.0


@pytest.mark.parametrize(("said", "expected"), [("on", True), ("auto", True), ("off", False)])
def test_the_registry_says_whether_there_is_mps(said: str, expected: bool) -> None:
    made: Any = SimpleNamespace(pool=SimpleNamespace(mps=said))

    assert has_mps(made) is expected
