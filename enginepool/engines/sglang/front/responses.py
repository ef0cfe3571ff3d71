"""OpenAI's /v1/responses by SGLang's code, but stateless, since a worker may serve another model a second later.

Written for SGLang 0.5.17, whose `OpenAIServingResponses` keeps all responses and their messages in memory forever,
unless a request says `store: false`.
"""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import HTTPException
from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses

from enginepool.engines.sglang.front.field_check import FieldNotServed, check_fields

_NEEDS_WHAT_WAS_KEPT = {
    "background": "Background responses cannot be fetched later, since responses are not stored here.",
    "previous_response_id": "Responses are not stored here; send the conversation so far in `input`.",
}
"""Parameters that are refused, and why."""


class StatelessResponses(OpenAIServingResponses):  # type: ignore[misc]
    """Treats `store` as false, as the answer states."""

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        for name, reason in _NEEDS_WHAT_WAS_KEPT.items():
            if getattr(request, name):
                return self.create_error_response(reason, param=name)
        try:
            check_fields("/v1/responses", request)
        except FieldNotServed as error:
            return self.create_error_response(str(error), param=error.field)
        kept_by_nobody = {"store": False, "request_id": f"resp_{uuid.uuid4().hex}"}
        return await super().create_responses(request.model_copy(update=kept_by_nobody), raw_request)


class NoResponses:
    """Used for gpt-oss, for whose response format SGLang would download a vocabulary during the activation."""

    async def create_responses(self, request: Any, raw_request: Any = None) -> Any:
        raise HTTPException(400, "This model is not served by /v1/responses; use /v1/chat/completions.")


def serving_responses(manager: Any, templates: Any) -> StatelessResponses | NoResponses:
    """The object that answers /v1/responses for the model of `manager`, a TokenizerManager."""
    if manager.model_config.hf_config.model_type == "gpt_oss":
        return NoResponses()
    return StatelessResponses(manager, templates, enable_prompt_tokens_details=True)
