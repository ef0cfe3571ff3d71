"""The models of the registry, as clients and workers need them."""

from __future__ import annotations

import time
from typing import Any

from config.errors import RequestError
from config.registry import ModelConfig, Registry
from enginepool.messages import ModelSpec

NAME_SHOWN = 100
"""How many characters of an unknown name the error repeats."""


class Catalog:
    def __init__(self, registry: Registry) -> None:
        self._models = {model.name: model for model in registry.models}
        self._specs = {model.name: _spec(model) for model in registry.models}
        self._created = int(time.time())

    def get(self, name: str) -> ModelConfig:
        """
        Raises:
            RequestError: 404; there is no such model.
        """
        model = self._models.get(name)
        if model is None:
            message = f"The model '{name[:NAME_SHOWN]}' does not exist. GET /v1/models lists those that do."
            raise RequestError(404, message, param="model", code="model_not_found")
        return model

    def spec(self, name: str) -> ModelSpec:
        return self._specs[name]

    def card(self, name: str) -> dict[str, Any]:
        """The answer to GET /v1/models/{id}; `slo` (seconds) is Prism's own field.

        Raises:
            RequestError: 404; there is no such model.
        """
        model = self.get(name)
        return {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "prism",
            "slo": {"ttft_s": model.slo.ttft, "tpot_s": model.slo.tpot},
        }

    def cards(self) -> dict[str, Any]:
        return {"object": "list", "data": [self.card(name) for name in self._models]}


def _spec(model: ModelConfig) -> ModelSpec:
    return ModelSpec(model.name, str(model.path or ""), model.dtype, model.engine_args, model.weights)
