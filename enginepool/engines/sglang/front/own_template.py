"""A client's own chat template, which is a program: refused, unless the registry allows it."""

from __future__ import annotations

from typing import Any

import msgspec

from config.errors import RequestError

OWN_TEMPLATE = b'"chat_template"'
"""In a body that may have one."""
REFUSAL = "chat_template: a client's own chat template is not served here; the model's own is used."


class _Body(msgspec.Struct):
    chat_template: Any = None
    chat_template_kwargs: Any = None


def refuse_own_template(body: bytes) -> None:
    """
    Raises:
        RequestError: 400, the body has a chat template. What is no JSON at all, others will say.
    """
    try:
        sent = msgspec.json.decode(body, type=_Body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    more = sent.chat_template_kwargs if isinstance(sent.chat_template_kwargs, dict) else {}
    if sent.chat_template is not None or more.get("chat_template") is not None:
        raise RequestError(400, REFUSAL, code="unsupported_value", param="chat_template")
