"""The project's exception tree. Foreign errors are translated into one of these once, at the boundary.

PrismError
├── ConfigError            the registry is invalid; carries all problems
├── ShapeError             a config.json does not tell the model's size
├── RequestError           a client's request is refused; becomes an OpenAI error body
├── ChannelError           the framed connection between two processes failed
│   ├── ChannelClosed
│   └── ProtocolError      the peer sent an invalid frame
├── StoreError             weights in host memory
│   └── HostMemoryShort
├── EngineError            a worker's engine failed to carry out a command
├── PoolError              a process of the pool failed to start or stop
├── OperatorError          an admin command failed
└── RecordingError         a recorded run cannot be read
"""

from __future__ import annotations

from collections.abc import Sequence


class PrismError(Exception):
    """Base class of all errors that Prism raises deliberately."""


class ConfigError(PrismError):
    """The registry cannot be used.

    `problems` holds one line each, with file, key and what was expected.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ShapeError(PrismError):
    """A model's config.json does not state the model's size in a form that Prism understands."""


class RequestError(PrismError):
    """A client's request is refused with the HTTP `status` and an error body in OpenAI's format.

    `retry_after`, in seconds, becomes the Retry-After header.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after = retry_after


class ChannelError(PrismError):
    """A framed connection cannot be used."""


class ChannelClosed(ChannelError):
    """The connection was closed, by the peer or on this side."""


class ProtocolError(ChannelError):
    """The peer sent bytes that are not a valid frame of known messages."""


class StoreError(PrismError):
    """A model's weights cannot be read, written or mapped."""


class HostMemoryShort(StoreError):
    """The host does not have enough memory for a segment."""


class EngineError(PrismError):
    """An engine failed to carry out a command."""


class PoolError(PrismError):
    """A process of the pool failed to start or stop."""


class OperatorError(PrismError):
    """An operator's command failed."""


class RecordingError(PrismError):
    """A recorded run cannot be read; the message names file, line and what was expected."""


def describe(error: BaseException) -> str:
    """Type and first line of a foreign error, to be quoted in one of ours; two lines if the first ends in a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
