"""How a run of the scheduler is written down: a JSON line for what it was built from, then one for each event."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from config.errors import RecordingError
from config.registry import Registry
from scheduler.actions import AnyAction
from scheduler.events import AnyEvent
from scheduler.learned.profile import Profile
from scheduler.scheduler import Scheduler

VERSION: Final = 5
"""Of the format; it changes with the events, the actions and the registry, not with what is decided."""


class Header(Struct, frozen=True, tag="prism recording"):
    """What `Scheduler` was built from."""

    version: Literal[5]
    """Comes first: a file of another version is told as that, not by what has changed since."""
    registry: Registry
    weight_bytes: dict[str, int]
    capacities: dict[str, int]
    kv_bytes: dict[str, int]
    profile: Profile
    staging: bool
    validate: bool
    staged: dict[str, int] = {}
    """Bytes of models that are in host memory already, by an earlier scheduler of the same gateway."""

    def scheduler(self, *, validate: bool = False) -> Scheduler:
        """A new one; it checks its invariants if the recorded one did, or with `validate`."""
        return Scheduler(
            self.registry,
            self.weight_bytes,
            capacities=self.capacities,
            kv_bytes=self.kv_bytes,
            profile=self.profile,
            staging=self.staging,
            staged=self.staged,
            validate=self.validate or validate,
        )


class Step(Struct, frozen=True):
    """One event, and what the scheduler made of it."""

    at: float
    """Monotonic seconds."""
    event: AnyEvent
    actions: list[AnyAction] | None
    """None: it raised an error."""


# A registry has paths, which JSON has not.
encoder = msgspec.json.Encoder(enc_hook=str)
_header = msgspec.json.Decoder(Header, dec_hook=lambda kind, text: kind(text))
_step = msgspec.json.Decoder(Step)


class Recording:
    """A recording as it is read: the `header` at once, the steps one by one, each with the number of its line.

    `lines` are those of the file `name`, with their ends. The last one may be cut off, as a kill leaves it: then it is
    left out, and `cut_off` is true once all steps were taken.

    Raises:
        RecordingError: a line is not what it should be; also while iterating.
    """

    def __init__(self, name: str, lines: Iterable[bytes]) -> None:
        self._name = name
        self._lines = iter(lines)
        self.cut_off = False
        expected = f"the header of a recording, version {VERSION}"
        self.header: Header = self._decode(_header, next(self._lines, b""), 1, expected)

    def __iter__(self) -> Iterator[tuple[int, Step]]:
        for number, line in enumerate(self._lines, start=2):
            try:
                step: Step = self._decode(_step, line, number, "an event with its time and its actions")
            except RecordingError:
                if line.endswith(b"\n"):
                    raise
                self.cut_off = True
                return
            yield number, step

    def _decode(self, decoder: msgspec.json.Decoder[Any], line: bytes, number: int, expected: str) -> Any:
        try:
            return decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RecordingError(f"{self._name}:{number}: expected {expected}, got: {error}") from error
