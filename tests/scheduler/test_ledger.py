"""The ledger of one device's memory: whatever is asked of it, it promises no more than there is."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from scheduler.state.ledger import Ledger, Overcommitted


def test_a_higher_limit_counts_at_once_and_a_lower_one_once_it_is_confirmed() -> None:
    ledger = Ledger(100, [0])
    ledger.reserve(0, held=10, weights=20, limit=5)
    assert ledger.free == 65
    ledger.set_limit(0, 50)
    assert ledger.free == 20
    revision = ledger.set_limit(0, 30)
    assert ledger.free == 20
    assert not ledger.confirm(0, revision - 1, 0), "that was another limit"
    assert not ledger.confirm(0, revision, 31), "it has more than that"
    assert ledger.free == 20
    assert ledger.confirm(0, revision, 30)
    assert ledger.free == 40


def test_a_lower_limit_that_is_taken_back_costs_nothing() -> None:
    ledger = Ledger(100, [0])
    ledger.reserve(0, held=0, weights=0, limit=90)
    ledger.set_limit(0, 10)
    ledger.set_limit(0, 90)
    assert ledger.free == 10


def test_what_is_not_there_cannot_be_promised() -> None:
    ledger = Ledger(100, [0, 1])
    ledger.reserve(0, held=10, weights=20, limit=30)
    with pytest.raises(Overcommitted):
        ledger.reserve(1, held=10, weights=20, limit=30)
    with pytest.raises(Overcommitted):
        ledger.set_limit(0, 71)
    assert ledger.free == 40


def test_a_worker_that_holds_more_than_was_promised_is_believed() -> None:
    ledger = Ledger(100, [0, 1])
    ledger.reserve(0, held=10, weights=60, limit=20)
    ledger.measure(1, 15)
    assert (ledger.free, ledger.excess) == (-5, 5)
    ledger.confirm(0, ledger.set_limit(0, 10), 0)
    assert (ledger.free, ledger.excess) == (5, 0)


def test_without_a_capacity_everything_fits_and_is_kept_all_the_same() -> None:
    ledger = Ledger(None, [0])
    ledger.reserve(0, held=10, weights=2**60, limit=5)
    assert ledger.fits(2**60)
    assert ledger.used == 15 + 2**60


CAPACITY = 100
SIZES = st.integers(0, 60)
WORKERS = st.integers(0, 2)


class Books(RuleBasedStateMachine):
    """The device beside its ledger: what each worker has in fact, while it keeps to what it was told and confirmed."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(CAPACITY, range(3))
        self.surprise = 0
        """Bytes that workers have reported beyond what was promised to them."""

    @rule(worker=WORKERS, held=SIZES, weights=SIZES, limit=SIZES)
    def reserve(self, worker: int, held: int, weights: int, limit: int) -> None:
        before = self.ledger.free
        more = held + weights + limit - self.ledger[worker].total
        try:
            self.ledger.reserve(worker, held=held, weights=weights, limit=limit)
        except Overcommitted:
            assert more > max(0, before)
            assert self.ledger.free == before
        else:
            assert self.ledger.free == before - more

    @rule(worker=WORKERS, nbytes=SIZES)
    def set_limit(self, worker: int, nbytes: int) -> None:
        before, revision = self.ledger.free, self.ledger[worker].revision
        more = max(0, nbytes - self.ledger[worker].kv)
        try:
            assert self.ledger.set_limit(worker, nbytes) == revision + 1
        except Overcommitted:
            assert more > max(0, before)
            more = 0
        assert self.ledger.free == before - more

    @rule(worker=WORKERS, mapped=SIZES, late=st.booleans())
    def confirm(self, worker: int, mapped: int, late: bool) -> None:
        account = self.ledger[worker]
        before = account.kv
        held = self.ledger.confirm(worker, account.revision - late, mapped)
        assert held == (not late and mapped <= account.limit)
        assert account.kv == (account.limit if held else before)

    @rule(worker=WORKERS, held=SIZES)
    def measure(self, worker: int, held: int) -> None:
        self.surprise += max(0, held - self.ledger[worker].held)
        self.ledger.measure(worker, held)

    @rule(worker=WORKERS)
    def release(self, worker: int) -> None:
        self.ledger.release(worker, min(5, self.ledger[worker].held))

    @invariant()
    def it_balances(self) -> None:
        accounts = list(self.ledger)
        assert self.ledger.used == sum(account.held + account.weights + account.kv for account in accounts)
        assert self.ledger.used + self.ledger.free == CAPACITY
        assert all(min(account.held, account.weights, account.limit) >= 0 for account in accounts)
        assert all(account.limit <= account.kv for account in accounts)

    @invariant()
    def only_reports_overdraw(self) -> None:
        assert self.ledger.used <= CAPACITY + self.ledger.excess
        assert 0 <= self.ledger.excess <= self.surprise


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
