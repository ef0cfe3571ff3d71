"""Tells workers which models' weights are in host memory, so that they can prepare for them."""

from __future__ import annotations

from dataclasses import dataclass

from enginepool.messages import Offer, Withdraw
from enginepool.pool.store import WeightStore
from enginepool.pool.supervisor import Supervisor
from gateway.catalog import Catalog


@dataclass(frozen=True, slots=True, kw_only=True)
class Offers:
    pool: Supervisor
    store: WeightStore
    catalog: Catalog

    def offer(self, model: str) -> None:
        """Tell every worker of a model that has come into host memory."""
        for worker in self.pool.workers:
            self._offer(model, worker.number)

    def offer_all(self, worker: int) -> None:
        """Tell a worker that has just started of every model in host memory."""
        for model in self.store.models:
            self._offer(model, worker)

    def withdraw(self, model: str) -> None:
        """Have every worker let go of a model's weights; only then is their host memory free."""
        for worker in self.pool.workers:
            self.pool.send(worker.number, Withdraw(model))

    def _offer(self, model: str, worker: int) -> None:
        stored = self.store.get(model)
        if stored is not None:
            self.pool.send(worker, Offer(self.catalog.spec(model), stored.ref))
