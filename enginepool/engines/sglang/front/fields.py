"""Lists the fields of SGLang's requests that clients may use, by route; a field on no list is refused.

The lists are based on SGLang 0.5.17. `tests/sglang/test_fields.py` fails if the installed version has a field on no
list: find out what it makes SGLang do, to this request and to concurrent ones, and add it to the right list. Fields
unknown to SGLang have no effect.
"""

from __future__ import annotations

from dataclasses import dataclass


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one of SGLang's request classes."""

    kind: str
    """Module and name of the class."""
    served: frozenset[str]
    refused: frozenset[str]
    """Known but not served; values without effect are ignored."""

    @property
    def known(self) -> frozenset[str]:
        return self.served | self.refused | PASSED_OVER


PASSED_OVER = _names(
    "user metadata store service_tier parallel_tool_calls prompt_cache_key safety_identifier"
    " rid request_id priority http_worker_ipc received_time log_metrics no_logs custom_labels routing_key"
    " conversation_id"
    " external_trace_header truncation include max_tool_calls"
)
"""Fields that clients commonly send and that have no effect, or that the gateway overrides."""

_OPENAI = "sglang.srt.entrypoints.openai.protocol:"
_SAMPLING = _names(
    "frequency_penalty logit_bias n presence_penalty repetition_penalty stop stop_token_ids temperature top_p"
    " top_k min_p"
    " regex ebnf ignore_eos skip_special_tokens no_stop_trim"
)
_STREAM = _names("stream stream_options")
_TEMPLATE = _names("messages tools tool_choice reasoning_effort continue_final_message chat_template_kwargs")
_ADAPTERS = _names("lora_path custom_logit_processor custom_params session_id session_params")
_OTHER_INSTANCES = _names("bootstrap_host bootstrap_port bootstrap_room routed_dp_rank disagg_prefill_dp_rank")
_INSIDE = _names("return_hidden_states return_routed_experts routed_experts_start_len")
_PICTURES = _names("max_dynamic_patch min_dynamic_patch use_audio_in_video images_config")
_CACHE = _names("extra_key cache_salt")

ROUTES: dict[str, Fields] = {
    "/v1/chat/completions": Fields(
        f"{_OPENAI}ChatCompletionRequest",
        _SAMPLING
        | _STREAM
        | _TEMPLATE
        | _CACHE
        | _names(
            "model logprobs top_logprobs max_tokens max_completion_tokens min_tokens response_format seed"
            " separate_reasoning stream_reasoning input_ids return_cached_tokens_details return_prompt_token_ids"
            " return_token_ids return_meta_info"
        ),
        _ADAPTERS | _OTHER_INSTANCES | _INSIDE | _PICTURES | _names("task stop_regex data_parallel_rank"),
    ),
    "/v1/completions": Fields(
        f"{_OPENAI}CompletionRequest",
        _SAMPLING
        | _STREAM
        | _CACHE
        | _names(
            "model prompt echo logprobs max_tokens min_tokens response_format json_schema seed"
            " return_cached_tokens_details return_token_ids"
        ),
        _ADAPTERS | _OTHER_INSTANCES | _INSIDE | _names("best_of suffix stop_regex images_config data_parallel_rank"),
    ),
    "/v1/responses": Fields(
        f"{_OPENAI}ResponsesRequest",
        _CACHE
        | _names(
            "model input instructions max_output_tokens reasoning stream temperature tool_choice tools"
            " top_logprobs top_p"
            " frequency_penalty presence_penalty stop top_k min_p repetition_penalty background previous_response_id"
        ),
        _names("session_id"),
    ),
    "/v1/embeddings": Fields(
        f"{_OPENAI}EmbeddingRequest",
        _names("model input encoding_format dimensions"),
        _names("lora_path embed_override_token_id embed_overrides"),
    ),
    "/v1/classify": Fields(f"{_OPENAI}ClassifyRequest", _names("model input"), frozenset()),
    "/v1/score": Fields(
        f"{_OPENAI}ScoringRequest",
        _names("model query items label_token_ids apply_softmax item_first"),
        _names("embed_override_token_id query_embed_overrides item_embed_overrides return_pooled_hidden_states"),
    ),
    "/v1/rerank": Fields(
        f"{_OPENAI}V1RerankReqInput", _names("query documents instruct top_n return_documents"), frozenset()
    ),
    "/v1/tokenize": Fields(
        f"{_OPENAI}TokenizeRequest", _TEMPLATE | _names("model prompt add_special_tokens"), frozenset()
    ),
    "/v1/detokenize": Fields(f"{_OPENAI}DetokenizeRequest", _names("model tokens skip_special_tokens"), frozenset()),
    "/generate": Fields(
        "sglang.srt.managers.io_struct:GenerateReqInput",
        _names(
            "text input_ids input_embeds image_data video_data audio_data modalities sampling_params return_logprob"
            " logprob_start_len top_logprobs_num token_ids_logprob return_text_in_logprobs stream extra_key"
            " return_prompt_token_ids"
        ),
        _OTHER_INSTANCES
        | _INSIDE
        | _PICTURES
        | _names(
            "session_id session_params lora_path lora_id custom_logit_processor positional_embed_overrides"
            " bootstrap_pair_key decode_tp_size background require_reasoning max_thinking_tokens return_bytes"
            " return_entropy"
            " return_sampling_mask return_flat_raw_top_logprobs return_flat_raw_top_logprobs_b64 return_indexer_topk"
            " mm_hashes need_wait_for_mm_inputs num_items_assigned mm_data_mooncake encoder_urls"
            " image_max_dynamic_patch"
            " video_max_dynamic_patch multi_item_delimiter_indices"
        ),
    ),
}

SAMPLING = Fields(
    "sglang.srt.sampling.sampling_params:SamplingParams",
    _SAMPLING
    | _names(
        "max_new_tokens min_new_tokens json_schema structural_tag spaces_between_special_tokens"
        " stream_interval sampling_seed"
    ),
    _names("stop_regex custom_params stop_strs stop_regex_strs stop_str_max_len stop_regex_max_len is_normalized"),
)
"""The parameters in /generate's field `sampling_params`."""
