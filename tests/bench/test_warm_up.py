"""Every model warm in every process before a measurement, and all as it was before."""

from __future__ import annotations

from typing import Any

from bench.load.client import session
from bench.load.operating import Operator
from bench.load.prompt_recipes import meet
from bench.load.tokens import simulated_counter
from bench.load.warm_up import WarmUp, left_as_found
from tests.rig.serving import PATIENCE, Prism, ServePrism, simulated

POOL: dict[str, Any] = {
    "engine_args": {"activation": "1ms", "tpot": "1ms"},
    "devices": ["cpu", "cpu:1"],
    "workers_per_device": 2,
}


def states(prism: Prism) -> list[tuple[str, str | None]]:
    return [(worker.state, worker.model) for worker in prism.status().workers]


def pairs(prism: Prism) -> set[tuple[str, int]]:
    """Which model was active on which worker, by the log."""
    lines = [line.partition("prism.scheduler")[2] for line in prism.log if " is active on worker " in line]
    words = [line.split() for line in lines]
    return {(line[line.index("is") - 1], int(line[line.index("worker") + 1])) for line in words if line}


async def warm_up(prism: Prism, models: tuple[str, ...]) -> WarmUp:
    counters = dict.fromkeys(models, simulated_counter)
    async with session(None) as client:
        subject = Operator(prism.url, prism.admin_socket, client)
        met = await meet(client, prism.url, models, counters, seed=1, patience=PATIENCE)
        async with left_as_found(subject):
            warming = WarmUp(subject, met)
            await warming.everywhere()
            begun = prism.status()
            await warming.everywhere()
            assert prism.status().decisions == begun.decisions, "what is warm is left alone"
    return warming


async def test_every_model_is_asked_in_every_worker(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", "b", "c", pool=POOL, scheduler={"policy": "space"}))
    prism.wait_until(lambda s: s.ready, "all models have their places")

    warming = await warm_up(prism, ("a", "b", "c"))

    assert not warming.cold
    assert prism.status().policy == "space"
    assert pairs(prism) == {(model, worker) for model in "abc" for worker in range(4)}


async def test_what_was_active_and_parked_is_so_again(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", "b", "c", pool=POOL))
    prism.wait_for_workers()
    for model, worker in (("a", 3), ("b", 0), ("c", 1)):
        assert prism.command("activate", model=model, worker=worker).ok
    assert prism.command("evict", model="b").ok
    before = states(prism)
    assert before == [("parked", "b"), ("active", "c"), ("blank", None), ("active", "a")]

    await warm_up(prism, ("c",))

    assert states(prism) == before


async def test_a_pinned_model_is_warm_where_it_stays(serve_prism: ServePrism) -> None:
    registry = simulated(pool=POOL)
    registry["models"] = [{"name": "pinned", "pinned": True}, {"name": "a"}]
    prism = serve_prism(registry)
    prism.wait_until(lambda s: s.ready, "the pinned model is active")

    warming = await warm_up(prism, ("pinned", "a"))

    assert not warming.cold
    assert len({worker for model, worker in pairs(prism) if model == "a"}) == 3


async def test_what_cannot_be_warm_is_told(serve_prism: ServePrism) -> None:
    """Its activation never ends, so the worker is replaced."""
    pool = {**POOL, "devices": ["cpu"], "workers_per_device": 1, "transition_timeout": "200ms"}
    pool["engine_args"] = {"activation": "1h"}
    prism = serve_prism(simulated("a", pool=pool))
    prism.wait_for_workers()
    async with session(None) as client:
        warming = WarmUp(Operator(prism.url, prism.admin_socket, client), {"a": None})  # type: ignore[dict-item]
        await warming.everywhere()

    assert "a not on worker 0: prism activate: a cannot be activated on worker 0" in warming.report()
