"""A grammar that turns out to be too much for llguidance ends its own request, and not the rank.

SGLang 0.5.15.post1 expects an error when a grammar is made, and when it is told of a token, for which it aborts the
request. llguidance 1.9.1 looks into a grammar lazily: a schema that refers to itself, or a regex of a million states,
is found out when it is first asked what may come next, and that error leaves the Scheduler's loop.

To be imported after SGLang.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.constrained.llguidance_backend import GuidanceGrammar


def adapt() -> None:
    """Once per process."""
    fill = GuidanceGrammar.fill_vocab_mask

    def fill_or_allow_all(grammar: Any, vocab_mask: Any, idx: int) -> None:
        try:
            fill(grammar, vocab_mask, idx)
        except ValueError:  # stays with the grammar, which says so again when it is told of the token
            vocab_mask[idx].fill_(-1)

    GuidanceGrammar.fill_vocab_mask = fill_or_allow_all
