"""The policies that have one model at a time on a device, where host memory is short."""

from __future__ import annotations

import pytest

from config.registry import PolicyName
from scheduler.events import WorkerBlank
from tests.rig.fake_pool import Bench


def test_whoever_is_first_of_those_who_wait_may_have_the_host_memory_of_the_others() -> None:
    bench = Bench(["a", "b"], weights={"a": 6, "b": 5}, policy="swap")
    bench.activate("a")
    bench.settle()
    bench.die(0)
    request = bench.ask("a", within=0.5)
    command = bench.activate("b")

    bench.tell(WorkerBlank(0))
    bench.settle()

    assert bench.answers()[command]
    assert bench.on(request) == 0


@pytest.mark.parametrize("policy", ["swap", "serverless"])
def test_a_model_makes_way_in_host_memory_for_one_that_an_operator_wants_beside_it(policy: PolicyName) -> None:
    bench = Bench(["a", "b"], workers=2, weights={"a": 6, "b": 5}, policy=policy, quantum=0.0)
    bench.finish(bench.serve("a"))
    bench.wait(5.0)

    command = bench.activate("b", worker=1)
    for _ in range(10):
        bench.settle()
        bench.wait(1.0)

    assert bench.answers() == {command: True}
    assert bench.active() == {1: "b"}
