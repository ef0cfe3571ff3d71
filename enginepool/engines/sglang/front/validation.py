"""What SGLang's front half lets through and its rank would die of, with every request in it: refused before that.

Of SGLang 0.5.17, which checks some ranges and hardly any type. A ValueError becomes an answer with status 400.

To be imported after `warm` only.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, get_type_hints

import msgspec
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

MOST_ANSWERS = 128
"""Of one prompt."""
MOST_BIAS = 100.0
"""Of a token, either way, as in OpenAI's API. Large ones overflow."""
MOST_TOP_K = 2**30
"""What SGLang takes for all."""
_SEEDS = range(-(2**63), 2**63)
_MADE_BY_SGLANG = {
    "stop_strs",
    "stop_regex_strs",
    "stop_str_max_len",
    "stop_regex_max_len",
    "is_normalized",
}
_OPTIONS = frozenset(SamplingParams.__struct_fields__) - _MADE_BY_SGLANG
_Sampling = msgspec.defstruct(
    "_Sampling", [(name, kind, None) for name, kind in get_type_hints(SamplingParams).items()]
)
"""SGLang's own reads arrays only."""


def check_answers(obj: Any) -> None:
    """Of a request of SGLang's, before anything else is made of it: how many answers it wants.

    Raises:
        ValueError: none, or far too many, or there is no telling.
    """
    given = getattr(obj, "sampling_params", None)
    for options in given if isinstance(given, list) else [given]:
        if options is not None and not isinstance(options, dict):
            raise ValueError("sampling_params must be an object.")
        n = (options or {}).get("n")
        if n is not None and (type(n) is not int or not 1 <= n <= MOST_ANSWERS):
            raise ValueError(f"n must be a whole number from 1 to {MOST_ANSWERS}, got {n!r}.")


def check(obj: Any, input_ids: Any, config: Any, *, is_generation: bool) -> None:
    """A request for one prompt of these tokens, of a model of SGLang's ModelConfig `config`.

    Raises:
        ValueError: the rank must not see it.
    """
    _check_tokens("input_ids", input_ids or (), config.vocab_size)
    _check_embeds(getattr(obj, "input_embeds", None), config.hidden_size)
    if not isinstance(obj, GenerateReqInput):
        return
    if not is_generation:
        raise ValueError("This model is served for embeddings, and does not generate.")
    _check_logprobs(obj, config.vocab_size)
    _check_sampling(obj.sampling_params, config.vocab_size)


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
        raise ValueError(f"input_embeds must be lists of {size} finite numbers each, and at least one.")


def _check_logprobs(obj: Any, vocabulary: int) -> None:
    for name, value, least, most in (
        ("logprob_start_len", obj.logprob_start_len, -1, math.inf),
        ("top_logprobs_num", obj.top_logprobs_num, 0, vocabulary),
    ):
        if value is not None and (type(value) is not int or not least <= value <= most):
            up_to = "" if most == math.inf else f" to {most}"
            raise ValueError(f"{name} must be a whole number from {least}{up_to}, got {value!r}.")


def _check_sampling(given: dict[str, Any], vocabulary: int) -> None:
    options = {name: value for name, value in given.items() if value is not None}
    if unknown := sorted(options.keys() - _OPTIONS):
        raise ValueError(f"sampling_params has no {unknown[0]!r}.")
    if options.get("stop_regex"):
        raise ValueError("stop_regex is not served: one that backtracks would hold up everybody beside it.")
    try:
        msgspec.convert(options, _Sampling)
    except msgspec.ValidationError as error:
        raise ValueError(f"sampling_params: {error}") from error
    if options.get("top_k", 1) > MOST_TOP_K:
        raise ValueError(f"top_k must be at most {MOST_TOP_K}, got {options['top_k']}.")
    if options.get("sampling_seed", 0) not in _SEEDS:
        raise ValueError("sampling_seed must be a whole number of 64 bits.")
    _check_tokens("stop_token_ids", list(options.get("stop_token_ids", ())), vocabulary)
    for token, bias in options.get("logit_bias", {}).items():
        if not token.isdecimal():
            raise ValueError(f"logit_bias: {token!r} is no token.")
        if not -MOST_BIAS <= bias <= MOST_BIAS:
            raise ValueError(f"logit_bias must be from -{MOST_BIAS:g} to {MOST_BIAS:g}, got {bias}.")
