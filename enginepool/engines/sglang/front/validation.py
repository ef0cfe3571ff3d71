"""Refuses requests that SGLang's front half accepts but that would crash its rank, and with it all other requests.

Written for SGLang 0.5.17, which checks some ranges and hardly any types. A ValueError becomes a response with status
400.

To be imported after `warm` has run.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, get_type_hints

import msgspec
from sglang.srt.managers.io_struct import GenerateReqInput, msgpack_decode, msgpack_encode
from sglang.srt.sampling.sampling_params import SamplingParams

from enginepool.engines.sglang.front.fields import SAMPLING

MOST_ANSWERS = 128
"""Answers per prompt."""
MOST_LOGPROBS = 20
"""Alternatives per token, as in OpenAI's API; each adds a text to the answer."""
MOST_LABELS = 1024
"""Tokens whose log probabilities are requested at each position, and tokens with a bias; the rank handles them one by
one."""
MOST_STOPS = 64
"""Stop strings; each is searched for at every token."""
LONGEST_STOP = 1024
"""Characters of a stop string; SGLang decodes as many tokens again at every token."""
MOST_TEMPERATURE = 100.0
LEAST_REPETITION = 0.01
"""Logits are divided by the repetition penalty and must stay finite."""
LEAST_TOP_P = 1e-6
MOST_BIAS = 100.0
"""Absolute bias of a token, as in OpenAI's API; large ones overflow."""
MOST_TOP_K = 2**30
"""SGLang's value for the whole vocabulary."""
_GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
_Sampling = msgspec.defstruct(
    "_Sampling", [(name, kind, None) for name, kind in get_type_hints(SamplingParams).items()]
)
"""SamplingParams as a Struct that can be decoded from a mapping; SGLang's own class decodes from arrays only."""


def check_answers(obj: Any) -> None:
    """Check how many answers one of SGLang's requests asks for, before anything else is done with it.

    Raises:
        ValueError: the number is invalid or too large.
    """
    given = getattr(obj, "sampling_params", None)
    for options in given if isinstance(given, list) else [given]:
        if options is not None and not isinstance(options, dict):
            raise ValueError("sampling_params must be an object.")
        n = (options or {}).get("n")
        if n is not None and (type(n) is not int or not 1 <= n <= MOST_ANSWERS):
            raise ValueError(f"n must be a whole number from 1 to {MOST_ANSWERS}, got {n!r}.")


def check(obj: Any, input_ids: Any, config: Any, *, is_generation: bool) -> None:
    """Check a request for one prompt of tokens `input_ids`; `config` is SGLang's ModelConfig.

    Raises:
        ValueError: the request must not reach the rank.
    """
    _check_tokens("input_ids", input_ids or (), config.vocab_size)
    _check_embeds(getattr(obj, "input_embeds", None), config.hidden_size)
    if not input_ids and getattr(obj, "input_embeds", None) is None:
        raise ValueError("The prompt is empty: it has no tokens.")
    _check_media(obj, config)
    if not isinstance(obj, GenerateReqInput):
        return
    if not is_generation:
        raise ValueError("This model is served for embeddings and does not generate text.")
    _check_logprobs(obj, config.vocab_size)
    _check_sampling(obj.sampling_params, config)


def _check_tokens(name: str, tokens: Any, vocabulary: int) -> None:
    try:
        numbers = array("q", tokens)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{name} must be tokens of the model, whole numbers from 0 to {vocabulary - 1}.") from error
    if numbers and not 0 <= min(numbers) <= max(numbers) < vocabulary:
        wrong = next(number for number in numbers if not 0 <= number < vocabulary)
        raise ValueError(f"{name} must be tokens of the model, from 0 to {vocabulary - 1}, got {wrong}.")


def _check_embeds(rows: Any, size: int) -> None:
    if rows is None:
        return
    try:
        fit = all(len(row) == size and math.isfinite(sum(row)) for row in rows)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"input_embeds must be a list of lists of {size} numbers.") from error
    if not rows or not fit:
        raise ValueError(f"input_embeds must be at least one list, each of {size} finite numbers.")


def check_tokens_of(path: str, request: Any, vocabulary: int) -> None:
    """Check token ids in requests to SGLang's own routes, which SGLang does not check.

    Raises:
        ValueError: an id is not in the vocabulary, or there are none.
    """
    if path == "/v1/score" and request.label_token_ids == []:
        raise ValueError("label_token_ids must name at least one token.")
    if path == "/v1/detokenize":
        for tokens in request.tokens if request.tokens and isinstance(request.tokens[0], list) else [request.tokens]:
            _check_tokens("tokens", tokens, vocabulary)


def check_readable(request: Any) -> None:
    """Check that the rank will be able to decode a request, by encoding and decoding it here.

    Raises:
        ValueError: a field's type differs from that in SGLang's class.
    """
    made_by_sglang = dict.fromkeys(("time_stats", "mm_inputs"))  # created by SGLang and pickled, so left out here
    msgpack_decode(msgpack_encode(msgspec.structs.replace(request, **made_by_sglang)))


def _check_media(obj: Any, config: Any) -> None:
    for name in ("image_data", "video_data", "audio_data"):
        if getattr(obj, name, None) and not config.is_multimodal:
            raise ValueError(f"{name} is not served: this model takes text only.")


def _check_logprobs(obj: Any, vocabulary: int) -> None:
    _check_whole("logprob_start_len", obj.logprob_start_len, -1, None)
    _check_whole("top_logprobs_num", obj.top_logprobs_num, 0, MOST_LOGPROBS)
    labels = obj.token_ids_logprob
    if labels is None:
        return
    if not isinstance(labels, list) or not 1 <= len(labels) <= MOST_LABELS:
        raise ValueError(f"token_ids_logprob must be a list of 1 to {MOST_LABELS} tokens.")
    _check_tokens("token_ids_logprob", labels, vocabulary)


def _check_whole(name: str, value: Any, least: int, most: int | None) -> None:
    if value is not None and (type(value) is not int or value < least or (most is not None and value > most)):
        up_to = "" if most is None else f" to {most}"
        raise ValueError(f"{name} must be a whole number from {least}{up_to}, got {value!r}.")


def _check_sampling(given: dict[str, Any], config: Any) -> None:
    options = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(options.keys() - SAMPLING.served):
        raise ValueError(_why_not(unknown[0]))
    try:
        msgspec.convert(options, _Sampling)
    except msgspec.ValidationError as error:
        raise ValueError(f"sampling_params: {error}") from error
    _check_ranges(options, config)
    _check_stops(options.get("stop", ()))
    _check_tokens("stop_token_ids", list(options.get("stop_token_ids", ())), config.vocab_size)
    _check_bias(options.get("logit_bias", {}))
    _check_grammar(options)


def _why_not(name: str) -> str:
    if name == "stop_regex":
        return "stop_regex is not served: one that backtracks would delay all other requests."
    return f"{name} is not served here." if name in SAMPLING.refused else f"sampling_params has no {name!r}."


def _check_ranges(options: dict[str, Any], config: Any) -> None:
    for name, least, most in (
        ("temperature", 0.0, MOST_TEMPERATURE),
        ("repetition_penalty", LEAST_REPETITION, 2.0),
        ("top_p", LEAST_TOP_P, 1.0),
        ("top_k", -1, MOST_TOP_K),
        ("min_new_tokens", 0, config.context_len),
        ("stream_interval", 1, config.context_len),
        ("sampling_seed", -(2**63), 2**63 - 1),
    ):
        value = options.get(name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {value}.")


def _check_stops(stops: str | list[str]) -> None:
    texts = [stops] if isinstance(stops, str) else stops
    if len(texts) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in texts):
        raise ValueError(f"stop may have at most {MOST_STOPS} texts of at most {LONGEST_STOP} characters.")


def _check_bias(biases: dict[str, float]) -> None:
    if len(biases) > MOST_LABELS:
        raise ValueError(f"logit_bias may name at most {MOST_LABELS} tokens, got {len(biases)}.")
    for token, bias in biases.items():
        if not (token.isascii() and token.isdecimal()):
            raise ValueError(f"logit_bias: {token!r} is not a token id.")
        if not -MOST_BIAS <= bias <= MOST_BIAS:
            raise ValueError(f"logit_bias must be from -{MOST_BIAS:g} to {MOST_BIAS:g}, got {bias}.")


def _check_grammar(options: dict[str, Any]) -> None:
    """Refuse a grammar combined with a minimum length: if the grammar is complete before that, no token is allowed."""
    grammar = next((name for name in _GRAMMARS if name in options), None)
    if grammar is not None and options.get("min_new_tokens"):
        raise ValueError(
            f"min_tokens (min_new_tokens) cannot be combined with a grammar ({grammar}, also implied by "
            "response_format and tools): the answer ends where the grammar does."
        )
