"""The journal: what was decided and what came of it, as records that several readers can follow at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from config.registry import ModelConfig, PoolConfig, Registry, SchedulerConfig
from gateway.core import Gateway
from gateway.journal import Journal
from gateway.report import JournalEntry
from gateway.subscription import Missed, Subscription
from tests.rig.serving import PATIENCE

DEVICES = ["cuda:0", "cuda:0", "cuda:1"]


async def read(entries: Subscription, count: int) -> list[str | Missed]:
    """The next `count` items, entries by their reason."""
    items = [await anext(entries) for _ in range(count)]
    return [item.reason if isinstance(item, JournalEntry) else item for item in items]


async def test_a_slow_subscriber_loses_the_oldest_entries_and_is_told_how_many() -> None:
    journal = Journal(DEVICES)
    async with journal.subscribe() as quick, journal.subscribe(capacity=2) as slow:
        for reason in ("1st", "2nd", "3rd", "4th", "5th"):
            journal.worker_dead(0, reason)
            assert await read(quick, 1) == [reason]
        assert await read(slow, 3) == [Missed(3), "4th", "5th"]
        journal.worker_dead(0, "6th")
        assert await read(slow, 1) == await read(quick, 1) == ["6th"]


async def test_a_subscriber_waits_for_the_next_entry_and_finds_those_before_it_in_the_journal() -> None:
    journal = Journal(DEVICES)
    journal.worker_dead(0, "before")
    async with journal.subscribe() as entries:
        reading = asyncio.create_task(read(entries, 1))
        await asyncio.sleep(0)
        assert not reading.done()
        journal.worker_dead(0, "after")
        assert await reading == ["after"]
    assert [entry.reason for entry in journal.entries] == ["before", "after"]


async def test_nothing_is_kept_for_a_subscriber_that_has_left() -> None:
    journal = Journal(DEVICES)
    async with journal.subscribe() as entries:
        pass
    journal.worker_dead(0, "killed")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await anext(entries)


def test_an_entry_says_whom_it_concerns_and_why() -> None:
    journal = Journal(DEVICES)
    journal.worker_dead(2, "killed by SIGKILL")
    journal.device_fault("cuda:0", [0, 1], "it fell off the bus")
    journal.refused("a", "its weights are gone")
    dead, fault, refused = journal.entries
    assert (dead.kind, dead.worker, dead.device, dead.reason) == ("worker_dead", 2, "cuda:1", "killed by SIGKILL")
    assert (fault.kind, fault.worker, fault.device) == ("device_fault", None, "cuda:0")
    assert (refused.kind, refused.model, refused.worker) == ("refused", "a", None)
    assert refused.text == "refusing requests for a: its weights are gone"


def test_a_refusal_is_entered_once_for_each_reason() -> None:
    journal = Journal(DEVICES)
    for reason in ("too large", "too large", "broken", "broken"):
        journal.refused("a", reason)
    assert [entry.reason for entry in journal.entries] == ["too large", "broken"]


async def test_subscribers_of_a_gateway_follow_an_activation_as_it_goes(short_path: Path) -> None:
    pool = PoolConfig(engine="simulated", workers_per_device=1, engine_args={"activation": 0.001})
    registry = Registry(pool=pool, scheduler=SchedulerConfig(policy="lru"), models=(ModelConfig(name="a"),))
    gateway = Gateway(registry, short_path, validate=True)
    await gateway.start()
    try:
        async with asyncio.timeout(PATIENCE), gateway.journal.subscribe() as entries:
            await gateway.activate("a", None)
            decided, active = [await anext(entries), await anext(entries)]
        assert isinstance(decided, JournalEntry)
        assert isinstance(active, JournalEntry)
        assert (decided.kind, decided.model, decided.worker, decided.device) == ("activate", "a", 0, "cpu")
        assert (active.kind, active.model, active.worker, active.device) == ("activated", "a", 0, "cpu")
    finally:
        await gateway.stop(grace=0)
