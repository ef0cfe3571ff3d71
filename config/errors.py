"""The exception tree of the whole project. Foreign errors are translated to one of these, once, at the boundary.

PrismError
├── ConfigError            the registry is wrong: every problem at once
├── ShapeError             a config.json whose sizes are not understood
├── RequestError           a client's request is refused: becomes an OpenAI error body
├── ChannelError           the framed connection between two processes
│   ├── ChannelClosed
│   └── ProtocolError      the peer sent what no version of it should
├── StoreError             weights in host memory
│   └── HostMemoryShort
├── EngineError            a worker's engine cannot do what it was told
├── PoolError              a process of the pool does not start or stop
├── OperatorError          an admin command that failed, with the reason
└── RecordingError         a recorded run cannot be read
"""

from __future__ import annotations

from collections.abc import Sequence


class PrismError(Exception):
    """Root of everything Prism raises on purpose."""


class ConfigError(PrismError):
    """The registry cannot be used.

    `problems` are whole lines, each naming file, key and what was expected.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class ShapeError(PrismError):
    """A model's config.json does not say how large the model is, in a form that is understood here."""


class RequestError(PrismError):
    """A client's request is refused with `status` (HTTP) and a body in OpenAI's error form.

    `retry_after` is in seconds and becomes the Retry-After header.
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
    """The peer is gone, or the connection was closed here."""


class ProtocolError(ChannelError):
    """The peer sent bytes that are not a frame of known messages."""


class StoreError(PrismError):
    """A model's weights cannot be read, written or mapped."""


class HostMemoryShort(StoreError):
    """The host has not the memory that a segment needs."""


class EngineError(PrismError):
    """An engine cannot do what it was told."""


class PoolError(PrismError):
    """A process of the pool did not start, or did not stop."""


class OperatorError(PrismError):
    """An operator's command failed."""


class RecordingError(PrismError):
    """A recorded run cannot be read; the text names file, line and what was expected."""


def describe(error: BaseException) -> str:
    """The first line of a foreign error, with its type, for the message of one of ours; two if it announces more."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
