"""What the gateway reads of a request: no more than routing needs. The body goes to the engine as it came."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec

from config.errors import RequestError

SLO_HEADER = "X-SLO-TTFT-MS"
WORKER_HEADER, DEVICE_HEADER = "X-Prism-Worker", "X-Prism-Device"
"""Of an answer: the number of the worker that gives it, and its device."""
BYTES_PER_TOKEN = 4.0
"""Of a prompt, until the worker has counted."""

_JSON_PATH = re.compile(r"(?P<problem>.*) - at `\$\.(?P<param>[^`]+)`", re.DOTALL)


class Routing(msgspec.Struct):
    model: str


_decoder = msgspec.json.Decoder(Routing)


def read_model(body: bytes) -> str:
    """The model that a body asks for.

    Raises:
        RequestError: 400; the body is no JSON object, or `model` is missing or no string.
    """
    try:
        return _decoder.decode(body).model
    except msgspec.ValidationError as error:
        raise _translate(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except RecursionError as error:
        raise RequestError(400, "The body is nested too deeply.", code="invalid_json") from error


def _translate(problem: str) -> RequestError:
    if "missing required field `model`" in problem:
        message = "You must provide a model parameter."
        return RequestError(400, message, param="model", code="missing_required_parameter")
    located = _JSON_PATH.fullmatch(problem)
    if located is None:
        return RequestError(400, f"The body is not a JSON object with a model: {problem}.", code="invalid_json")
    param = located["param"]
    return RequestError(400, f"'{param}': {located['problem']}.", param=param, code="invalid_type")


def read_slo(headers: Mapping[str, str], default: float) -> float:
    """Seconds until the first token is due: from the header, in milliseconds there, or the model's own.

    Raises:
        RequestError: 400; the header is no positive number.
    """
    text = headers.get(SLO_HEADER)
    if text is None:
        return default
    try:
        milliseconds = float(text)
    except ValueError:
        milliseconds = 0.0
    if not 0.0 < milliseconds < 1e9:
        message = f"The header {SLO_HEADER} must be a positive number of milliseconds, not {text!r}."
        raise RequestError(400, message, param=SLO_HEADER, code="invalid_value")
    return milliseconds / 1000


def body_digest(path: str, body: bytes) -> str:
    """By which the scheduler knows what has ended a worker, should it come again. The body names its model."""
    digest = hashlib.blake2b(path.encode(), digest_size=16)
    digest.update(body)
    return digest.hexdigest()


def estimate_prompt_tokens(body: bytes) -> int:
    return int(len(body) / BYTES_PER_TOKEN) + 1
