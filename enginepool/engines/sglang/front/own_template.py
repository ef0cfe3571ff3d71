"""Refuses chat templates sent by clients, which are programs, unless the registry allows them."""

from __future__ import annotations

from typing import Any

import msgspec

from config.errors import RequestError

OWN_TEMPLATE = b'"chat_template"'
"""Text contained in every body with a chat template."""
REFUSAL = "chat_template: chat templates sent by clients are not allowed here; the model's own is used."


class _TemplateFields(msgspec.Struct):
    chat_template: Any = None
    chat_template_kwargs: Any = None


def refuse_own_template(body: bytes) -> None:
    """Check a body for a chat template. Invalid JSON is left to others to report.

    Raises:
        RequestError: 400, the body has a chat template.
    """
    try:
        sent = msgspec.json.decode(body, type=_TemplateFields)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    more = sent.chat_template_kwargs if isinstance(sent.chat_template_kwargs, dict) else {}
    if sent.chat_template is not None or more.get("chat_template") is not None:
        raise RequestError(400, REFUSAL, code="unsupported_value", param="chat_template")
