"""Fixes batches in which only some requests ask for log probabilities of given tokens (`token_ids_logprob`, /v1/score).

SGLang 0.5.17 returns a tensor for each request that asks for them and an empty list for each that does not. When it
reads out the batch, it calls `tolist` on all of them, which lists do not have.

To be imported after SGLang.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor


def adapt() -> None:
    """Patch SGLang. Once per process."""
    processor = SchedulerBatchResultProcessor
    processor.move_logprobs_to_cpu = _with_tensors_only(processor.move_logprobs_to_cpu)
    processor._normalize_decode_outputs = _with_tensors_only(processor._normalize_decode_outputs)


def _with_tensors_only(read: Callable[..., Any]) -> Callable[..., Any]:
    def read_tensors(processor: Any, *, logits_output: Any, **rest: Any) -> Any:
        values = logits_output and logits_output.next_token_token_ids_logprobs_val
        if values:
            logits_output.next_token_token_ids_logprobs_val = [torch.as_tensor(it) for it in values]
        return read(processor, logits_output=logits_output, **rest)

    return read_tensors
