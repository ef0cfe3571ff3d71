"""A device's memory from the outside: shared out among models by a real gateway, and shown to those who operate it."""

from __future__ import annotations

from typing import Any

import pytest

from config.errors import PoolError
from config.registry import PoolConfig
from gateway import tables
from gateway.device_memory import capacities
from gateway.report import DeviceStatus, Status
from tests.rig.asking import ask, chat
from tests.rig.serving import ServePrism

GIB = 2**30
HELD = {"held_blank": "1GiB", "held_active": "2GiB", "held_parked": "2GiB"}


def two_models(pool: dict[str, Any], **engine_args: Any) -> dict[str, object]:
    """On 20 GiB: 11 are left for the KV cache of one of these models, 4 for both together."""
    arguments = {**HELD, "activation": "10ms", "tpot": "1ms", "kv_per_token": "1MiB", **engine_args}
    models = [{"name": name, "engine_args": {"weights": "6GiB"}} for name in ("a", "b")]
    device = {"engine": "simulated", "device_memory": "20GiB", "engine_args": arguments}
    return {"pool": {**device, **pool}, "models": models}


def kv_limits(status: Status) -> list[float]:
    return [worker.kv_limit / GIB for worker in status.workers]


def test_a_model_that_only_fits_after_a_shrink_is_served_beside_the_other(serve_prism: ServePrism) -> None:
    prism = serve_prism(two_models({}, limit_delay="50ms"))
    assert chat(prism, "a", max_tokens=2).status == 200
    prism.wait_until(lambda status: sorted(kv_limits(status)) == [0, 11], "a has all that is left")
    assert chat(prism, "b", max_tokens=2).status == 200
    status = prism.wait_until(lambda status: kv_limits(status) == [2, 2], "both have half of what is left")
    assert [worker.state for worker in status.workers] == ["active", "active"]
    assert status.devices == [
        DeviceStatus("cpu", capacity=20 * GIB, held=4 * GIB, weights=12 * GIB, kv_limit=4 * GIB, free=0)
    ]
    page = tables.render_status(status)
    assert "cpu: 20.0 GiB; held by workers 4.0 GiB, weights 12.0 GiB, KV cache up to 4.0 GiB, free 0 B" in page
    scrape = ask(prism, "GET", "/metrics").body.decode()
    assert 'prism_device_memory_bytes{device="cpu",kind="weights"} 1.2884901888e+10' in scrape
    assert prism.command("evict", model="b").ok
    prism.wait_until(lambda status: 10 in kv_limits(status), "a has what b had, but for b's skeleton")


def test_an_activation_that_waits_too_long_for_memory_fails_and_nobody_else_notices(serve_prism: ServePrism) -> None:
    prism = serve_prism(two_models({"shrink_timeout": "100ms"}, limit_delay="1h"))
    assert prism.command("activate", model="a").ok
    failed = prism.command("activate", model="b")
    assert not failed.ok
    assert "did not give back their KV cache in time" in failed.text
    status = prism.wait_until(lambda status: sorted(kv_limits(status)) == [0, 11], "a has its limit back")
    assert sorted(worker.state for worker in status.workers) == ["active", "blank"]
    assert chat(prism, "a", max_tokens=2).status == 200


def test_the_capacity_is_what_the_registry_says() -> None:
    devices = ("cuda:0", "cuda:1")
    assert capacities(PoolConfig(engine="simulated", devices=devices)) == {}
    assert capacities(PoolConfig(engine="transformers")) == {}
    given = PoolConfig(engine="sglang", devices=("cpu", *devices), device_memory=8 * GIB)
    assert capacities(given) == dict.fromkeys(devices, 8 * GIB)


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PoolError, match=r"the memory of cuda:99 is not known: .*set pool\.device_memory"):
        capacities(PoolConfig(engine="sglang", devices=("cuda:99",)))
