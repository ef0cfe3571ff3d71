"""Types of the registry's fields, with their bounds, their parsers, and the description used in error messages."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from config.units import parse_duration, parse_size

Seconds = Annotated[
    float, Meta(gt=0, description="a duration above 0 such as 500ms, 2s or 1.5m", extra={"parse": parse_duration})
]
Delay = Annotated[float, Meta(ge=0, description="a duration such as 500ms, 2s or 0s", extra={"parse": parse_duration})]
Bytes = Annotated[
    int, Meta(gt=0, lt=2**60, description="a size above 0 such as 512MiB or 16GiB", extra={"parse": parse_size})
]

Count = Annotated[int, Meta(ge=1, lt=2**31, description="an integer of at least 1")]
NonNegative = Annotated[int, Meta(ge=0, lt=2**31, description="an integer of at least 0")]
Rank = Annotated[int, Meta(gt=-(2**31), lt=2**31, description="an integer")]
Port = Annotated[int, Meta(ge=0, le=65535, description="a port from 0 to 65535")]

Word = Annotated[
    str,
    Meta(pattern=r"\A[^\s\x00-\x1f\x7f-\x9f]+\Z", description="a name without spaces or control characters, not empty"),
]
"""Names of models, devices and hosts. Slashes are allowed, as in meta-llama/Llama-3.1-8B."""
