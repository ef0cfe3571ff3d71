"""Errors in OpenAI's form."""

from __future__ import annotations

import msgspec

from config.errors import RequestError


def error_body(error: RequestError) -> bytes:
    """JSON of `{"error": {"message", "type", "param", "code"}}`."""
    fields = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return msgspec.json.encode({"error": fields})


def took_too_long(seconds: float) -> RequestError:
    """A prompt took longer than the registry allows."""
    message = f"The prompt takes longer than {seconds:g} s to become tokens, its chat template included."
    return RequestError(400, message, code="preparation_timeout")


def server_error(message: str) -> RequestError:
    """An error that is Prism's own fault and not the client's: status 500."""
    return RequestError(500, message, kind="server_error", code="internal_error")
