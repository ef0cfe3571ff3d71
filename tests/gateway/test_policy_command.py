"""The gateway as it comes, under the policy `prism`: idle memory is used ahead of demand, and yields to who asks."""

from __future__ import annotations

from gateway.report import Status
from tests.rig.asking import chat
from tests.rig.serving import Prism, ServePrism, simulated

SPRY = {"engine_args": {"tpot": "1ms", "activation": "10ms"}, "workers_per_device": 2}


def served(*names: str) -> dict[str, object]:
    return simulated(*names, pool=SPRY, scheduler={"policy": "prism"})


def active(status: Status) -> set[str | None]:
    return {worker.model for worker in status.workers if worker.state == "active"}


def reasons(prism: Prism) -> list[str]:
    return [entry.text for entry in prism.status().decisions]


def test_idle_workers_have_models_before_anybody_asks(serve_prism: ServePrism) -> None:
    prism = serve_prism(served("a", "b", "c"))
    prism.wait_until(lambda status: active(status) == {"a", "b"}, "as many models are active as there are workers")
    assert any("memory of cpu is idle" in text for text in reasons(prism))


def test_a_model_that_is_asked_for_takes_the_place_of_an_idle_one(serve_prism: ServePrism) -> None:
    prism = serve_prism(served("a", "b", "c"))
    prism.wait_until(lambda status: active(status) == {"a", "b"}, "both workers are taken")
    for name in ("c", "a", "b", "c"):
        answer = chat(prism, name, max_tokens=3)
        assert answer.status == 200
        assert name in active(prism.status())
    assert any("needed for c" in text for text in reasons(prism))


def test_a_model_that_an_operator_evicts_stays_out_until_it_is_asked_for(serve_prism: ServePrism) -> None:
    prism = serve_prism(served("a"))
    prism.wait_until(lambda status: active(status) == {"a"}, "a is active ahead of its demand")
    assert prism.command("evict", model="a").ok
    assert chat(prism, "a", max_tokens=1).status == 200
    assert prism.command("evict", model="a").ok
    status = prism.status()
    assert "a" not in active(status)
