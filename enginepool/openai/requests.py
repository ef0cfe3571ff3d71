"""Parses bodies of /v1/chat/completions and /v1/completions for the embedded engines (`answers` formats answers).

Each parameter of the API is either supported, or accepted only with a value that has no effect, or refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from config.errors import RequestError

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/v1/completions"
MAX_CHOICES = 128
COMPLETION_MAX_TOKENS = 16
"""OpenAI's default for /v1/completions."""


# --- what engines get -----------------------------------------------------------------------------------------


class Sampling(Struct, frozen=True, kw_only=True):
    """How to sample tokens and when to stop."""

    max_tokens: int | None
    """None if not given; see `output_limit`."""
    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int | None
    n: int
    stop: tuple[str, ...]
    ignore_eos: bool = False
    """Continue up to `max_tokens` even after an end-of-sequence token, as in SGLang and vLLM."""


class ChatMessage(Struct, frozen=True):
    role: Literal["system", "user", "assistant"]
    content: str


class ChatRequest(Struct, frozen=True, kw_only=True):
    model: str
    messages: tuple[ChatMessage, ...]
    sampling: Sampling
    stream: bool
    include_usage: bool


class CompletionRequest(Struct, frozen=True, kw_only=True):
    model: str
    prompts: tuple[str | tuple[int, ...], ...]
    """Texts or token ids. Choice i * n + j is the j-th answer to the i-th prompt."""
    sampling: Sampling
    stream: bool
    include_usage: bool


T = TypeVar("T")
GenerationRequest = ChatRequest | CompletionRequest


# --- what clients send ----------------------------------------------------------------------------------------

_AtLeastOne = Annotated[int, Meta(ge=1)]
_Stop = str | Annotated[list[str], Meta(max_length=4)] | None
_Metadata = Annotated[dict[str, str], Meta(max_length=16)] | None


class _StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """Parameters of both routes. `user` and `metadata` are labels of the client: validated, but without effect."""

    model: str
    max_tokens: _AtLeastOne | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    n: Annotated[int, Meta(ge=1, le=8)] | None = None
    stop: _Stop = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    ignore_eos: bool | None = None
    user: str | None = None
    metadata: _Metadata = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None


class _Part(Struct, forbid_unknown_fields=True):
    type: str
    text: str | None = None
    image_url: Any = None
    input_audio: Any = None
    file: Any = None
    refusal: Any = None


class _Message(Struct, forbid_unknown_fields=True):
    role: str
    content: str | list[_Part]
    name: Any = None
    tool_call_id: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    tool_calls: Any = None
    function_call: Any = None


class _ChatBody(_Body, forbid_unknown_fields=True, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    max_completion_tokens: _AtLeastOne | None = None
    store: Any = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    service_tier: Any = None
    web_search_options: Any = None


class _CompletionBody(_Body, forbid_unknown_fields=True, kw_only=True):
    prompt: str | Annotated[list[str | int | list[Annotated[int, Meta(ge=0)]]], Meta(min_length=1)]
    suffix: Any = None
    echo: Any = None
    best_of: Any = None


_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
}
_NEUTRAL_CHAT: dict[str, tuple[Any, ...]] = {
    **_NEUTRAL,
    "store": (False,),
    "top_logprobs": (),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": (),
    "service_tier": ("auto", "default"),
    "web_search_options": (),
}
_NEUTRAL_COMPLETION: dict[str, tuple[Any, ...]] = {**_NEUTRAL, "logprobs": (), "suffix": ("",), "echo": (False,)}
_NEUTRAL_MESSAGE: dict[str, tuple[Any, ...]] = {
    "name": (),
    "tool_call_id": (),
    "refusal": (),
    "annotations": ([],),
    "audio": (),
    "tool_calls": ([],),
    "function_call": (),
}
_NEUTRAL_PART: dict[str, tuple[Any, ...]] = {"image_url": (), "input_audio": (), "file": (), "refusal": ()}
_ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}

_chat_decoder = msgspec.json.Decoder(_ChatBody)
_completion_decoder = msgspec.json.Decoder(_CompletionBody)


def parse(path: str, body: bytes) -> GenerationRequest:
    """Parse the body of a request to `path`.

    Raises:
        RequestError: 404 for an unknown path; 400, naming the parameter, for anything that cannot be honoured.
    """
    parser = _PARSERS.get(path)
    if parser is None:
        raise RequestError(404, f"This model's engine does not serve {path}.", code="unknown_url")
    return parser(body)


def parse_chat(body: bytes) -> ChatRequest:
    """Parse a body of /v1/chat/completions. Raises: RequestError (400)."""
    sent = _decode(_chat_decoder, body)
    _refuse_unsupported(sent, _NEUTRAL_CHAT)
    return ChatRequest(
        model=sent.model,
        messages=tuple(_message(index, message) for index, message in enumerate(sent.messages)),
        sampling=_sampling(sent, _chat_max_tokens(sent)),
        stream=bool(sent.stream),
        include_usage=_include_usage(sent),
    )


def parse_completion(body: bytes) -> CompletionRequest:
    """Parse a body of /v1/completions. Raises: RequestError (400)."""
    sent = _decode(_completion_decoder, body)
    _refuse_unsupported(sent, _NEUTRAL_COMPLETION)
    if sent.best_of not in (None, sent.n or 1):
        raise _unsupported("best_of", sent.best_of)
    prompts = _prompts(sent.prompt)
    if len(prompts) * (sent.n or 1) > MAX_CHOICES:
        raise _invalid("prompt", f"'prompt' times 'n' asks for more than {MAX_CHOICES} choices.")
    return CompletionRequest(
        model=sent.model,
        prompts=prompts,
        sampling=_sampling(sent, sent.max_tokens),
        stream=bool(sent.stream),
        include_usage=_include_usage(sent),
    )


def output_limit(request: GenerationRequest, prompt_tokens: int, room: int) -> int:
    """Maximum number of tokens for one choice: as requested, or OpenAI's default limited to what fits.

    `prompt_tokens` is the length of the prompt, `room` the maximum for prompt and answer together.

    Raises:
        RequestError: 400, the prompt leaves no room or less than requested.
    """
    left = room - prompt_tokens
    asked = request.sampling.max_tokens
    param = "messages" if isinstance(request, ChatRequest) else "prompt"
    if left < 1 or (asked is not None and asked > left):
        wanted = prompt_tokens + (asked or 1)
        raise RequestError(
            400,
            f"This model takes at most {room} tokens. However, you requested {wanted} tokens "
            f"({prompt_tokens} in the {param}, {asked or 1} for the answer).",
            code="context_length_exceeded",
            param=param if left < 1 else "max_tokens",
        )
    if asked is not None:
        return asked
    return left if isinstance(request, ChatRequest) else min(left, COMPLETION_MAX_TOKENS)


_PARSERS: dict[str, Callable[[bytes], GenerationRequest]] = {
    CHAT_PATH: parse_chat,
    COMPLETION_PATH: parse_completion,
}


def _sampling(sent: _Body, max_tokens: int | None) -> Sampling:
    return Sampling(
        max_tokens=max_tokens,
        temperature=1.0 if sent.temperature is None else sent.temperature,
        top_p=1.0 if sent.top_p is None else sent.top_p,
        seed=sent.seed,
        n=sent.n or 1,
        stop=_stop(sent.stop),
        ignore_eos=bool(sent.ignore_eos),
    )


def _stop(sent: str | list[str] | None) -> tuple[str, ...]:
    stops = (sent,) if isinstance(sent, str) else tuple(sent or ())
    if "" in stops:
        raise _invalid("stop", "'stop' must not hold an empty string.")
    return stops


def _chat_max_tokens(sent: _ChatBody) -> int | None:
    both = (sent.max_tokens, sent.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise _invalid("max_tokens", "'max_tokens' and 'max_completion_tokens' differ; give one of them.")
    return sent.max_completion_tokens or sent.max_tokens


def _include_usage(sent: _Body) -> bool:
    if sent.stream_options is None:
        return False
    if not sent.stream:
        raise _invalid("stream_options", "'stream_options' is only allowed with 'stream': true.")
    return bool(sent.stream_options.include_usage)


def _message(index: int, sent: _Message) -> ChatMessage:
    where = f"messages[{index}]"
    role = _ROLES.get(sent.role)
    if role is None:
        problem = f"Role '{sent.role}' is not supported by this engine; expected one of {', '.join(_ROLES)}."
        raise _invalid(f"{where}.role", problem)
    _refuse_unsupported(sent, _NEUTRAL_MESSAGE, where + ".")
    return ChatMessage(role, _content(f"{where}.content", sent.content))


def _content(where: str, sent: str | list[_Part]) -> str:
    if isinstance(sent, str):
        return sent
    return "".join(_part(f"{where}[{index}]", part) for index, part in enumerate(sent))


def _part(where: str, sent: _Part) -> str:
    if sent.type != "text":
        problem = f"Content of type '{sent.type}' is not supported by this engine; expected 'text'."
        raise _invalid(f"{where}.type", problem)
    _refuse_unsupported(sent, _NEUTRAL_PART, where + ".")
    if sent.text is None:
        raise _invalid(f"{where}.text", "A content part of type 'text' needs 'text'.")
    return sent.text


def _prompts(sent: str | list[str | int | list[int]]) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(sent, str):
        return (sent,)
    if all(isinstance(item, str) for item in sent):
        return tuple(item for item in sent if isinstance(item, str))
    if all(isinstance(item, list) for item in sent):
        return tuple(tuple(item) for item in sent if isinstance(item, list))
    ids = tuple(item for item in sent if isinstance(item, int) and item >= 0)
    if len(ids) != len(sent):
        raise _invalid("prompt", "'prompt' must be a string, strings, token ids, or lists of token ids: not a mixture.")
    return (ids,)


def _refuse_unsupported(sent: Struct, neutral: dict[str, tuple[Any, ...]], where: str = "") -> None:
    for name, accepted in neutral.items():
        value = getattr(sent, name)
        if value is not None and not any(_same(value, other) for other in accepted):
            raise _unsupported(where + name, value)


def _same(value: Any, other: Any) -> bool:
    # 0 == False in Python, not in JSON.
    return bool(value == other) and isinstance(value, bool) == isinstance(other, bool)


def _unsupported(param: str, value: Any) -> RequestError:
    shown = msgspec.json.encode(value).decode()
    if len(shown) > 60:
        shown = shown[:57] + "..."
    message = f"Unsupported value: '{param}' does not support {shown} with this engine."
    return RequestError(400, message, code="unsupported_value", param=param)


def _invalid(param: str | None, message: str, code: str = "invalid_value") -> RequestError:
    return RequestError(400, message, code=code, param=param)


# --- translation of msgspec's errors --------------------------------------------------------------------------

_AT = re.compile(r"^(?P<reason>.*?)(?: - at `\$(?P<path>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"^Object (?P<what>contains unknown|missing required) field `(?P<name>.*)`$", re.DOTALL)


def _decode(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _translate(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid(None, f"The body is not valid JSON: {error}.", "invalid_json") from error
    except RecursionError as error:
        raise _invalid(None, "The body is nested too deeply.", "invalid_json") from error


def _translate(problem: str) -> RequestError:
    found = _AT.match(problem)
    assert found is not None
    path = (found["path"] or "").removeprefix(".")
    field = _FIELD.match(found["reason"])
    if field is None:
        what = f"'{path}'" if path else "the body"
        return _invalid(path or None, f"Invalid value for {what}: {found['reason']}.", "invalid_type")
    param = f"{path}.{field['name']}".removeprefix(".")
    if field["what"] == "missing required":
        return _invalid(param, f"Missing required parameter: '{param}'.", "missing_required_parameter")
    return _invalid(param, f"Unknown parameter: '{param}'.", "unknown_parameter")
