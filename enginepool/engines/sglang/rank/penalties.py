"""Counts each token of an answer exactly once for its request's penalties.

SGLang 0.5.17 counts the last token that it knows of when it prepares a decode step. With overlap scheduling that is the
one before the last, but right after another request's prefill it is the last. That token is then counted twice, so
answers depend on which requests run beside them. And when a retracted request is prefilled again with its answer so
far, that answer is not counted, so the request may repeat itself or end before its `min_tokens`.

To be imported after SGLang.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.sampling import penaltylib
from sglang.srt.utils.common import is_pin_memory_available


def adapt() -> None:
    """Patch SGLang. Once per process."""
    prepare = ScheduleBatch.prepare_for_extend

    def prepare_and_count(batch: Any) -> None:
        prepare(batch)
        penalizers = batch.sampling_info.penalizer_orchestrator
        if penalizers.is_required and any(req.output_ids for req in batch.reqs):
            _count(batch, penalizers.penalizers)

    ScheduleBatch.prepare_for_extend = prepare_and_count
    ScheduleBatch.cumulate_penalty_output_tokens = count_each_once


def count_each_once(batch: Any) -> None:
    """In a decode step's preparation: the next token of each request that was not counted yet."""
    # Pinned, as SGLang does it: from other memory the copy would wait for the step that is under way.
    tokens = torch.tensor(
        [_next_to_count(req, batch.enable_overlap) for req in batch.reqs],
        dtype=torch.int64,
        pin_memory=is_pin_memory_available(batch.device),
    )
    batch.sampling_info.penalizer_orchestrator.cumulate_output_tokens(tokens.to(batch.device, non_blocking=True))


def _next_to_count(req: Any, overlap: bool) -> int:
    """With overlap the token before the one that this step decodes: the latter is known at some steps only.

    Of that one the KV cache has no entry yet; so it is as many tokens behind the prompt as have entries.
    """
    if not overlap:
        place = len(req.output_ids) - 1
    else:
        place = min(req.kv_committed_len - len(req.origin_input_ids), len(req.output_ids)) - 1
    said: int = req.output_ids[place] if place >= 0 else req.origin_input_ids[-1]
    return said


def _count(batch: Any, penalizers: dict[type, Any]) -> None:
    for kind, penalizer in penalizers.items():
        if not penalizer.is_prepared():
            continue
        for row, req in enumerate(batch.reqs):
            if req.output_ids:
                _COUNTERS[kind](penalizer, row, torch.tensor(_counted(req, batch.enable_overlap), device=batch.device))


def _counted(req: Any, overlap: bool) -> Any:
    """The tokens SGLang would have counted by now. With overlap scheduling it lags by one token and starts with the
    prompt's last token."""
    return (req.origin_input_ids[-1:] + req.output_ids)[:-1] if overlap else req.output_ids


def _frequency(penalizer: Any, row: int, said: torch.Tensor) -> None:
    each = penalizer.frequency_penalties[row].expand(len(said))
    penalizer.cumulated_frequency_penalties[row].scatter_add_(0, said, each)


def _presence(penalizer: Any, row: int, said: torch.Tensor) -> None:
    penalizer.cumulated_presence_penalties[row, said] = penalizer.presence_penalties[row]


def _repetition(penalizer: Any, row: int, said: torch.Tensor) -> None:
    penalizer.cumulated_repetition_penalties[row, said] = penalizer.repetition_penalties[row]


def _least(penalizer: Any, row: int, said: torch.Tensor) -> None:
    penalizer.len_output_tokens[row] = len(said)


_COUNTERS = {
    penaltylib.BatchedFrequencyPenalizer: _frequency,
    penaltylib.BatchedPresencePenalizer: _presence,
    penaltylib.BatchedRepetitionPenalizer: _repetition,
    penaltylib.BatchedMinNewTokensPenalizer: _least,
}
