"""The text form of a synthetic trace on a command line: `zipf:models=58,rate=20,cv=2,duration=1h,on=0.3`."""

from __future__ import annotations

from typing import Any

import msgspec

from config.decode import expected
from simulator.errors import UsageError
from simulator.traces.synthetic import KINDS, Synthetic

FORM = f"KIND[:KEY=VALUE,...] with KIND one of {', '.join(KINDS)}"


def parse_synthetic(text: str) -> Synthetic:
    """Parse the text form; parameters left out take the kind's defaults.

    Raises:
        UsageError: the text is invalid; the message names the key and what was expected.
    """
    name, _, rest = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise UsageError(f"{text!r}: expected {FORM}")
    settings: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            raise UsageError(f"{name}: expected KEY=VALUE, got {part!r}")
        if key in settings:
            raise UsageError(f"{name}: {key} is given twice")
        settings[key] = _setting(name, kind, key, value)
    try:
        return kind(**settings)
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def written(synthetic: Synthetic) -> str:
    """The text form with every parameter, defaults included, to be published with results."""
    kind = next(name for name, kind in KINDS.items() if type(synthetic) is kind)
    return f"{kind}:" + ",".join(f"{key}={value}" for key, value in msgspec.structs.asdict(synthetic).items())


def _setting(name: str, kind: type[Synthetic], key: str, value: str) -> Any:
    hints = {field.name: field.type for field in msgspec.structs.fields(kind)}
    if key not in hints:
        raise UsageError(f"{name} has no {key!r}; it has {', '.join(hints)}")
    try:
        return msgspec.convert(_parsed(value, hints[key]), hints[key], strict=False)
    except ValueError as error:
        raise UsageError(f"{name}: {key}: expected {expected(hints[key], value)}, got {value!r}") from error


def _parsed(value: str, hint: Any) -> Any:
    """Converts text with a unit to a number, for fields that have units."""
    parse = next((meta.extra["parse"] for meta in getattr(hint, "__metadata__", ()) if meta.extra), None)
    return parse(value) if parse else value
