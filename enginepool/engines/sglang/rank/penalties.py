"""Keeps penalties correct after a retraction.

SGLang 0.5.17 counts tokens for penalties as they are decoded. When a retracted request is prefilled again with its
answer so far, that answer is not counted, so the request may repeat itself or end before its `min_tokens`.

To be imported after SGLang.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.sampling import penaltylib


def adapt() -> None:
    """Patch SGLang. Once per process."""
    prepare = ScheduleBatch.prepare_for_extend

    def prepare_and_count(batch: Any) -> None:
        prepare(batch)
        penalizers = batch.sampling_info.penalizer_orchestrator
        if penalizers.is_required and any(req.output_ids for req in batch.reqs):
            _count(batch, penalizers.penalizers)

    ScheduleBatch.prepare_for_extend = prepare_and_count


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
