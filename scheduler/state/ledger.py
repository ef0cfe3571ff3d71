"""The memory of one device: which worker may have how much of it. Arithmetic only; `limits` says who should.

Nothing is ever promised that is not there. Only a worker's own report of what it holds can come out above that: then
the device is overdrawn until enough is given back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


class Overcommitted(AssertionError):
    """More memory was promised than the device has: a mistake of whoever asked."""


@dataclass(slots=True)
class Account:
    """One worker's part of the device, in bytes."""

    held: int = 0
    """Neither weights nor elastic KV cache: context, workspaces, graphs. As reported, or more while it activates."""
    weights: int = 0
    kv: int = 0
    """What its KV cache may have come to: the limit, or the one before while a lowered one is not confirmed."""
    limit: int = 0
    """The KV limit that it was last told."""
    revision: int = 0
    """Of that limit; grows with each."""

    @property
    def total(self) -> int:
        return self.held + self.weights + self.kv


class Ledger:
    """`capacity` in bytes; without one nothing is bounded, and the accounts are only kept."""

    def __init__(self, capacity: int | None, workers: Iterable[int]) -> None:
        self.capacity = capacity
        self._accounts = {worker: Account() for worker in workers}
        self.excess = 0
        """Bytes by which reports have overdrawn the device; a promise adds none."""
        self.used = 0
        """Bytes of all accounts together; noted, since this is asked for at every event."""
        self.fixed = 0
        """Those of them that no KV limit moves."""
        self.changes = 0

    def __getitem__(self, worker: int) -> Account:
        return self._accounts[worker]

    def __iter__(self) -> Iterator[Account]:
        return iter(self._accounts.values())

    @property
    def free(self) -> int:
        """Bytes that nobody has; negative while the device is overdrawn, 0 where nothing is bounded."""
        return 0 if self.capacity is None else self.capacity - self.used

    def by_kind(self) -> dict[str, int]:
        """Bytes, for people and metrics."""
        return {
            "capacity": self.capacity or 0,
            "held": sum(account.held for account in self),
            "weights": sum(account.weights for account in self),
            "kv_limit": sum(account.kv for account in self),
            "free": self.free,
        }

    def fits(self, nbytes: int) -> bool:
        """Whether so much more can be promised."""
        return self.capacity is None or nbytes <= max(0, self.free)

    def reserve(self, worker: int, *, held: int, weights: int, limit: int) -> None:
        """Promise a worker without a model what it needs for one.

        Raises:
            Overcommitted: it does not fit.
        """
        account = self._accounts[worker]
        self._claim(held + weights + limit - account.total)
        account.held, account.weights = held, weights
        account.kv = account.limit = limit
        account.revision += 1
        self._sum_up()

    def set_limit(self, worker: int, nbytes: int) -> int:
        """A new KV limit; returns its revision. A higher one counts from now on, a lower one once it is confirmed.

        Raises:
            Overcommitted: it does not fit.
        """
        account = self._accounts[worker]
        self._claim(max(0, nbytes - account.kv))
        account.kv = max(account.kv, nbytes)
        account.limit = nbytes
        account.revision += 1
        self._sum_up()
        return account.revision

    def confirm(self, worker: int, revision: int, mapped: int) -> bool:
        """A worker reports the bytes that its KV cache has under a limit; whether that one holds now."""
        account = self._accounts[worker]
        if revision != account.revision or mapped > account.limit:
            return False
        account.kv = account.limit
        self._sum_up()
        self._settle()
        return True

    def measure(self, worker: int, held: int) -> None:
        """A worker reports what it holds besides weights and KV cache. This alone may overdraw the device."""
        account = self._accounts[worker]
        grown = held > account.held
        account.held = held
        self._sum_up()
        if grown:
            self.excess = self._overdraft
        self._settle()

    def release(self, worker: int, held: int) -> None:
        """A worker has given back its model's memory, and now holds `held`."""
        account = self._accounts[worker]
        account.weights = account.kv = account.limit = 0
        self.measure(worker, held)

    def linger(self, worker: int) -> None:
        """Its process ends: whatever it had is taken until its successor reports."""
        account = self._accounts[worker]
        account.held = account.total
        account.weights = account.kv = account.limit = 0
        self._sum_up()

    def _sum_up(self) -> None:
        self.fixed = sum(account.held + account.weights for account in self)
        self.used = self.fixed + sum(account.kv for account in self)
        self.changes += 1

    @property
    def _overdraft(self) -> int:
        return max(0, -self.free)

    def _claim(self, nbytes: int) -> None:
        if nbytes > 0 and not self.fits(nbytes):
            raise Overcommitted(f"{nbytes} bytes promised, {self.free} are free")

    def _settle(self) -> None:
        self.excess = min(self.excess, self._overdraft)
