"""A grammar that turns out to be too much for llguidance ends its own request, and not the rank.

SGLang 0.5.17 expects an error when a grammar is made, and when it is told of a token, for which it aborts the request.
llguidance 1.9.1 looks into a grammar lazily: a schema that refers to itself, or a regex of a million states, is found
out when it is first asked what may come next. For one grammar at a time that error leaves the Scheduler's loop; for
several, nothing but an end is allowed, which looks as if the model had wanted it.

To be imported after SGLang.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.constrained.llguidance_backend import GuidanceGrammar

_ALL = -1
"""In a mask: every token of this row is allowed. The error stays with the grammar, which says so at the next token."""


def adapt() -> None:
    """Once per process."""
    fill, fill_rows = GuidanceGrammar.fill_vocab_mask, GuidanceGrammar.fill_vocab_mask_batched

    def fill_or_allow_all(grammar: Any, vocab_mask: Any, idx: int) -> None:
        try:
            fill(grammar, vocab_mask, idx)
        except ValueError:
            vocab_mask[idx].fill_(_ALL)

    def fill_rows_or_allow_all(entries: Any, vocab_mask: Any) -> None:
        fill_rows(entries, vocab_mask)
        for entry in entries:
            if isinstance(entry.grammar, GuidanceGrammar) and entry.grammar.ll_matcher.is_error():
                vocab_mask[entry.row].fill_(_ALL)

    GuidanceGrammar.fill_vocab_mask = fill_or_allow_all
    GuidanceGrammar.fill_vocab_mask_batched = staticmethod(fill_rows_or_allow_all)
