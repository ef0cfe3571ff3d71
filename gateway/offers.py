"""Tells workers which models' weights are in host memory, so that they can prepare for them."""

from __future__ import annotations

from enginepool.messages import Offer, Withdraw
from gateway.context import Context


def offer(context: Context, model: str) -> None:
    """A model has come into host memory."""
    for worker in context.pool.workers:
        _offer(context, model, worker.number)


def offer_all(context: Context, worker: int) -> None:
    """A worker has started."""
    for model in context.store.models:
        _offer(context, model, worker)


def withdraw(context: Context, model: str) -> None:
    """A model leaves host memory, which is free once every worker has let go of it."""
    for worker in context.pool.workers:
        context.pool.send(worker.number, Withdraw(model))


def _offer(context: Context, model: str, worker: int) -> None:
    stored = context.store.get(model)
    if stored is not None:
        context.pool.send(worker, Offer(context.catalog.spec(model), stored.ref))
