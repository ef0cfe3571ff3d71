"""Turns tokens into text that may be sent: whole characters only, and nothing from a stop string on."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes one choice token by token; the pieces add up to what decoding all tokens at once yields.

    Each piece is the difference between two short decodings, since many tokenizers decode a token differently at the
    start of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        self._sent = 0

    def push(self, token: int) -> str:
        """Returns the text that `token` completes; empty within a character of several tokens."""
        self._ids.append(token)
        return self._piece(final=False)

    def finish(self) -> str:
        """Returns the rest, with an incomplete character as U+FFFD."""
        return self._piece(final=True)

    def _piece(self, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._sent])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or (now.endswith(_INCOMPLETE) and not final):
            return ""
        self._start, self._sent = self._sent, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopFilter:
    """Passes on text up to the first stop string, holding back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; returns what may be sent now."""
        self._held += text
        # The stop string that ends first wins, regardless of how the text was split into pieces.
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            return self._release(min(found)[1])
        return self._release(len(self._held) - self._partial())

    def finish(self) -> str:
        """Returns the text held back; to be called when no more text comes."""
        return "" if self.stopped else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _partial(self) -> int:
        """Length of the longest suffix of the held text that begins a stop string."""
        return max((_overlap(self._held, stop) for stop in self._stops), default=0)


def _overlap(text: str, stop: str) -> int:
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
