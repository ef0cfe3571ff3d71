"""Who gets a worker, who is evicted, who moves: the policies, by the name that the registry gives."""

from __future__ import annotations

from config.registry import Registry
from scheduler.policies.exclusive import Serverless, Swap
from scheduler.policies.fixed import Space, Static
from scheduler.policies.on_demand import OnDemand
from scheduler.policies.policy import Policy
from scheduler.policies.prism import Prism
from scheduler.policies.prism_paper import PrismPaper

_BY_NAME: dict[str, type[OnDemand]] = {
    "lru": OnDemand,
    "prism": Prism,
    "prism-paper": PrismPaper,
    "serverless": Serverless,
    "space": Space,
    "static": Static,
    "swap": Swap,
}


def policy_of(registry: Registry) -> Policy:
    """The policy that the registry names."""
    return _BY_NAME[registry.scheduler.policy](registry)
