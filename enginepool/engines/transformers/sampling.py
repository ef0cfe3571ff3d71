"""Samples tokens from logits with transformers' own logits warpers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from enginepool.openai.requests import Sampling

GREEDY_BELOW = 1e-5
"""Temperatures below this are treated as greedy, since dividing by them would overflow."""
_NO_IDS = torch.LongTensor()
"""The warpers used here ignore the token ids."""


class Sampler:
    """Samples the tokens of one choice, reproducibly if the request has a seed."""

    def __init__(self, sampling: Sampling, choice: int) -> None:
        self._greedy = sampling.temperature < GREEDY_BELOW
        if self._greedy:
            return
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            # The n answers to one seed must differ.
            self._generator.manual_seed((sampling.seed + choice) % 2**63)
        self._warpers: list[LogitsProcessor] = []
        if sampling.temperature != 1.0:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1.0:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def choose(self, logits: Tensor) -> int:
        """Choose the next token from `logits` of shape (vocabulary,)."""
        if self._greedy:
            return int(logits.argmax())
        scores = logits.float().unsqueeze(0)
        for warper in self._warpers:
            scores = warper(_NO_IDS, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
