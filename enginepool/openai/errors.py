"""Errors in OpenAI's format."""

from __future__ import annotations

import msgspec

from config.errors import RequestError


def error_body(error: RequestError) -> bytes:
    """The JSON body `{"error": {"message", "type", "param", "code"}}`."""
    fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})


def took_too_long(seconds: float) -> RequestError:
    """Tokenizing a prompt took longer than the registry allows."""
    message = f"Applying the chat template and tokenizing the prompt takes longer than {seconds:g} s."
    return RequestError(400, message, code="preparation_timeout")


def server_error(message: str) -> RequestError:
    """An error for which Prism and not the client is responsible: status 500."""
    return RequestError(500, message, kind="server_error", code="internal_error")
