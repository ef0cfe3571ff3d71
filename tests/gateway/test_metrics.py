"""/metrics: every request is counted once, under what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.rig.asking import CHAT, ENDLESS, HELLO, ask, chat, session, streaming
from tests.rig.serving import Prism, ServePrism, simulated

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Scrape:
    """One reading of /metrics; 0 where there is no such sample yet, as Prometheus' functions take it."""

    def __init__(self, prism: Prism) -> None:
        answer = ask(prism, "GET", "/metrics")
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        self.families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
        self._samples: Samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self._samples.get((name, frozenset(labels.items())), 0.0)

    def since(self, before: Scrape, name: str, **labels: str) -> float:
        return self.value(name, **labels) - before.value(name, **labels)


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prism]:
    """Two models on two workers, one request at a time each."""
    pool: dict[str, Any] = {"max_running": 1, "engine_args": {"tpot": "1ms", "activation": "10ms"}}
    limits = {"queue_per_model": 1}
    registry = simulated("a", "b", pool=pool, gateway={"limits": limits})
    prism = Prism.start(tmp_path_factory.mktemp("metrics") / "gateway", registry)
    prism.wait_for_workers()
    assert chat(prism, "a", max_tokens=1).status == 200
    yield prism
    prism.close()


def test_every_metric_has_a_type_and_a_description(prism: Prism) -> None:
    families = Scrape(prism).families
    assert families
    assert all(name.startswith("prism_") for name in families)
    assert all(family.documentation and family.type != "unknown" for family in families.values())


@pytest.mark.parametrize("stream", [False, True])
def test_an_answered_request_is_counted_with_its_tokens(prism: Prism, stream: bool) -> None:
    before = Scrape(prism)
    answer = chat(prism, "a", max_tokens=5, stream=stream)
    assert answer.status == 200
    after = Scrape(prism)
    assert after.since(before, "prism_requests_total", model="a", outcome="200") == 1
    assert after.since(before, "prism_requests_total", model="b", outcome="200") == 0
    assert after.since(before, "prism_output_tokens_total", model="a") == 5
    assert after.since(before, "prism_prompt_tokens_total", model="a") == 2  # "Hello", by fours
    assert after.since(before, "prism_ttft_seconds_count", model="a") == 1
    assert after.since(before, "prism_tpot_seconds_count", model="a") == int(stream)


def test_a_first_token_in_time_is_counted_and_a_late_one_is_not(prism: Prism) -> None:
    before = Scrape(prism)
    assert chat(prism, "a", max_tokens=1, headers={"X-SLO-TTFT-MS": "600000"}).status == 200
    assert chat(prism, "a", max_tokens=1, headers={"X-SLO-TTFT-MS": "0.001"}).status == 200
    after = Scrape(prism)
    assert after.since(before, "prism_ttft_slo_met_total", model="a") == 1
    assert after.since(before, "prism_ttft_seconds_count", model="a") == 2


def test_what_the_engine_refuses_is_counted_by_its_status(prism: Prism) -> None:
    before = Scrape(prism)
    assert chat(prism, "a", tools=[{}]).status == 400
    after = Scrape(prism)
    assert after.since(before, "prism_requests_total", model="a", outcome="400") == 1
    assert after.since(before, "prism_ttft_seconds_count", model="a") == 0


def test_names_of_models_that_do_not_exist_make_no_metrics(prism: Prism) -> None:
    """Else a client could fill the gateway's memory with them."""
    assert chat(prism, "unheard-of").status == 404
    assert "unheard-of" not in ask(prism, "GET", "/metrics").body.decode()


async def test_gauges_show_what_runs_and_what_waits(prism: Prism) -> None:
    async with session(prism) as client:
        async with streaming(client, "a", ENDLESS):
            waiting = asyncio.create_task(client.post(CHAT, json={"model": "a", "messages": HELLO, "max_tokens": 1}))
            await asyncio.to_thread(prism.wait_until, lambda status: status.waiting == 1, "a request waits")
            scrape = await asyncio.to_thread(Scrape, prism)
            (worker,) = prism.model("a").workers
            assert scrape.value("prism_requests_running", worker=str(worker)) == 1
            assert scrape.value("prism_requests_running", worker=str(1 - worker)) == 0
            assert scrape.value("prism_requests_waiting", model="a") == 1
            assert scrape.value("prism_requests_in_flight") == 2
            assert scrape.value("prism_workers", phase="active") >= 1
            refused = await asyncio.to_thread(chat, prism, "a")
            assert refused.status == 429
        (await waiting).close()
    await asyncio.to_thread(prism.wait_until, lambda status: status.in_flight == 0, "nothing is in flight")
    after = await asyncio.to_thread(Scrape, prism)
    assert after.value("prism_requests_total", model="a", outcome="queue_full") == 1
    assert after.value("prism_requests_total", model="a", outcome="aborted") == 1
    assert after.value("prism_requests_running", worker=str(worker)) == 0


def test_activations_evictions_and_deaths_are_counted(serve_prism: ServePrism) -> None:
    prism = serve_prism(simulated("a", "b", pool={"workers_per_device": 1, "engine_args": {"activation": "20ms"}}))
    assert prism.command("activate", model="a").ok
    assert prism.command("activate", model="b").ok
    scrape = Scrape(prism)
    assert scrape.value("prism_activation_seconds_count", model="a") == 1
    assert scrape.value("prism_activation_seconds_sum", model="b") >= 0.02
    assert scrape.value("prism_evictions_total", model="a") == 1
    assert scrape.value("prism_evictions_total", model="b") == 0
    assert scrape.value("prism_worker_deaths_total") == 0
