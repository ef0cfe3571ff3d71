"""What clients are told of a failure: models by name, and no path of the server. Log and `prism status` have it all."""

from __future__ import annotations

import re
from collections.abc import Sequence

from config.registry import ModelConfig

_PATH = re.compile(r"(?<![\w/.:~-])/[\w.+@~-]+(?:/[\w.+@~-]*)*")
"""An absolute path, without the scheme and host of an address before it."""
_HIDDEN = "(path)"


class ServerPaths:
    def __init__(self, models: Sequence[ModelConfig]) -> None:
        named = {str(model.path): model.name for model in models if model.path is not None}
        self._names = dict(sorted(named.items(), key=lambda it: -len(it[0])))  # a folder after those in it

    def hide(self, text: str) -> str:
        """Of a text of the server's own."""
        return _PATH.sub(_HIDDEN, self._named(text))

    def hide_in_answer(self, body: bytes) -> bytes:
        """Of a worker's error, which may quote what the client sent: other paths stay."""
        return self._named(body.decode(errors="surrogateescape")).encode(errors="surrogateescape")

    def _named(self, text: str) -> str:
        for path, name in self._names.items():
            text = text.replace(path, name)
        return text
