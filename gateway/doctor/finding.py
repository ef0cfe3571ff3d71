"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Finding:
    """One row: what was looked at, how it is, and what to do about it if it is not ok.

    A `warning` costs speed or some feature; with a `failed` one there is no serving.
    """

    check: str
    status: Status
    text: str
    fix: str = ""


def ok(check: str, text: str) -> Finding:
    return Finding(check, "ok", text)


def warning(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "warning", text, fix)


def failed(check: str, text: str, fix: str) -> Finding:
    return Finding(check, "failed", text, fix)
