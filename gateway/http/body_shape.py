"""How many JSON values a body has, before anybody reads it as a whole: empty lists of 16 MiB take 2 s to read, and 11 s
as the messages of a chat."""

from __future__ import annotations

import asyncio

from config.errors import RequestError
from config.registry import Limits


async def check_shape(body: bytes, limits: Limits) -> None:
    """
    Raises:
        RequestError: 400, it has more values, or more objects and lists, than the registry allows.
    """
    if len(body) < min(limits.json_values, limits.json_containers) or not _may_have_too_many(body, limits):
        return
    problem = await asyncio.to_thread(_problem, body, limits)
    if problem:
        raise RequestError(400, problem, code="body_too_complex")


def _may_have_too_many(body: bytes, limits: Limits) -> bool:
    """Some milliseconds for 16 MiB: signs within strings count as well."""
    containers = _containers(body)
    return containers > limits.json_containers or _values(body, containers) > limits.json_values


def _problem(body: bytes, limits: Limits) -> str:
    """ "" if there are few enough."""
    containers = values = start = 0
    while start >= 0:
        opening = body.find(b'"', start)
        part = body[start : opening if opening >= 0 else len(body)]
        here = _containers(part)
        containers, values = containers + here, values + _values(part, here)
        if containers > limits.json_containers:
            return f"The body has more than {limits.json_containers} objects and lists."
        if values > limits.json_values:
            return f"The body has more than {limits.json_values} values."
        start = _after_string(body, opening)
    return ""


def _containers(part: bytes) -> int:
    return part.count(b"{") + part.count(b"[")


def _values(part: bytes, containers: int) -> int:
    return part.count(b",") + containers


def _after_string(body: bytes, opening: int) -> int:
    """Where a string ends that begins at `opening`; -1 if there is none, or no end of it."""
    if opening < 0:
        return -1
    closing = body.find(b'"', opening + 1)
    while closing >= 0 and _is_escaped(body, closing, opening):
        closing = body.find(b'"', closing + 1)
    return closing + 1 if closing >= 0 else -1


def _is_escaped(body: bytes, quote: int, opening: int) -> bool:
    """By an odd number of backslashes before it."""
    place = quote - 1
    while place > opening and body[place] == 0x5C:
        place -= 1
    return (quote - 1 - place) % 2 == 1
