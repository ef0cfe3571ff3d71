"""Refuses requests that use a field of SGLang's API that is not served. `fields` lists the served ones.

Written for SGLang 0.5.17. To be imported after `warm` has run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import Response

from config.errors import RequestError
from enginepool.engines.sglang.front.fields import PASSED_OVER, ROUTES, Fields
from enginepool.engines.sglang.front.requests import CURRENT
from enginepool.engines.sglang.front.validation import check_tokens_of
from enginepool.openai.answers import JSON
from enginepool.openai.errors import error_body

_MALFORMED = (TypeError, AttributeError, ArithmeticError, LookupError)
"""What SGLang raises when a part of a request does not have the type it assumes."""
_ASK_FOR_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values with which a field has no effect."""


class FieldNotServed(ValueError):
    """A request uses a field that is not served."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} is not served here.")
        self.field = field


def check_fields(path: str, request: Any) -> None:
    """Check the fields of a request to `path`, as parsed by SGLang.

    Raises:
        FieldNotServed: the request uses a field that is not served.
    """
    for name, value, default in _given(request):
        if not _may(ROUTES[path], name) and value != default and value not in _ASK_FOR_NOTHING:
            raise FieldNotServed(name)


def guard(serving: Any) -> Any:
    """Make one of SGLang's OpenAI serving objects answer 400 to fields that are not served, and to requests it fails to
    convert into its internal form."""
    handle, convert = serving.handle_request, serving._convert_to_internal_request

    async def check_and_handle(request: Any, raw_request: Any) -> Any:
        live = CURRENT.get()
        try:
            if live is not None:
                check_fields(live.path, request)
                check_tokens_of(live.path, request, serving.tokenizer_manager.model_config.vocab_size)
        except ValueError as error:
            return serving.create_error_response(str(error), param=getattr(error, "field", None))
        return await handle(request, raw_request)

    serving.handle_request = check_and_handle
    serving._convert_to_internal_request = _malformed_if_it_fails(convert)
    return serving


def answering_400(app: Any) -> Any:
    """Make SGLang's FastAPI application answer 400 to malformed requests, whatever its validators raise. To be called
    before its first request."""

    async def refuse(request: Any, error: Exception) -> Response:
        refusal = RequestError(400, f"The request is malformed: {error}")
        return Response(error_body(refusal), refusal.status, media_type=JSON)

    for kind in _MALFORMED:
        app.add_exception_handler(kind, refuse)
    return app


def _malformed_if_it_fails(convert: Callable[..., Any]) -> Callable[..., Any]:
    def convert_or_refuse(*args: Any, **kwargs: Any) -> Any:
        try:
            return convert(*args, **kwargs)
        except _MALFORMED as error:
            raise ValueError(f"The request is malformed: {error}") from error

    return convert_or_refuse


def _may(fields: Fields, name: str) -> bool:
    return name in fields.served or name in PASSED_OVER


def _given(request: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, value and default of each field that the client may have set."""
    if dataclasses.is_dataclass(request):
        for field in dataclasses.fields(request):
            yield field.name, getattr(request, field.name), field.default
    else:
        for name in request.model_fields_set & type(request).model_fields.keys():
            yield name, getattr(request, name), type(request).model_fields[name].default
