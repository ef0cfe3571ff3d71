"""Makes a grammar that fails in use end its own request instead of the rank.

SGLang 0.5.17 handles errors when a grammar is created and when it accepts a token, and aborts the request. But
llguidance 1.9.1 compiles grammars lazily: a schema that refers to itself, or a regex with a million states, fails when
the set of allowed tokens is first computed. With one grammar in the batch that error ends the Scheduler's loop; with
several, only the end token is allowed, which looks as if the model had chosen to stop.

To be imported after SGLang.
"""

from __future__ import annotations

from typing import Any

from sglang.srt.constrained.llguidance_backend import GuidanceGrammar

_ALL = -1
"""Bit mask that allows every token. The grammar keeps its error and reports it when it accepts the next token."""


def adapt() -> None:
    """Patch SGLang. Once per process."""
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
