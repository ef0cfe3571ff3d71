"""Tokenizers, kept: SGLang would read each up to five times per activation, half a second each.

What grammars need of a tokenizer takes as long again, so it is made at the first request with a grammar.

For SGLang 0.5.15.post1. What it is asked for differs by the model's folder only, since Prism lets no registry change
the other arguments.
"""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

User = Literal["manager", "detokenizer", "rank"]
"""Whoever runs in a thread of its own has tokenizers of its own: they are not made for two threads at a time."""

FRONT: tuple[User, ...] = ("manager", "detokenizer")
RANK: tuple[User, ...] = ("rank",)
MOST = 32
"""Tokenizers kept in one process, some ten MB each, or 100 with a large vocabulary."""

_MODULES: dict[str, User] = {
    "sglang.srt.managers.tokenizer_manager": "manager",
    "sglang.srt.managers.detokenizer_manager": "detokenizer",
    "sglang.srt.managers.tp_worker": "rank",
    "sglang.srt.managers.scheduler": "rank",
    "sglang.srt.utils.hf_transformers_utils": "manager",
}
"""Where SGLang looks `get_tokenizer` up, and for whom."""


class _Kept:
    def __init__(self, get: Callable[..., Any]) -> None:
        self._get = get
        self._lock = threading.Lock()
        self._tokenizers: OrderedDict[tuple[User, str], Any] = OrderedDict()

    def get(self, user: User, path: str, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            key = (user, path)
            if key not in self._tokenizers:
                self._tokenizers[key] = self._get(path, *args, **kwargs)
                if len(self._tokenizers) > MOST:
                    self._tokenizers.popitem(last=False)
            self._tokenizers.move_to_end(key)
            return self._tokenizers[key]


_kept: _Kept | None = None


def keep() -> None:
    """Have SGLang in this process ask here. Once, after its imports."""
    global _kept
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    kept = _kept = _Kept(get_tokenizer)

    def getter(user: User) -> Callable[..., Any]:
        return lambda path, *args, **kwargs: kept.get(user, path, *args, **kwargs)

    for name, user in _MODULES.items():
        vars(importlib.import_module(name))["get_tokenizer"] = getter(user)


def make_grammars_late() -> None:
    """Have llguidance look through a tokenizer when a grammar needs it first, in SGLang's thread for that."""
    from sglang.srt.constrained import llguidance_backend

    build = llguidance_backend.from_tokenizer
    made: OrderedDict[tuple[int, int | None], tuple[Any, Any]] = OrderedDict()
    lock = threading.Lock()

    def make(tokenizer: Any, vocabulary: int | None) -> Any:
        with lock:
            key = (id(tokenizer), vocabulary)
            if key not in made:
                made[key] = (tokenizer, build(tokenizer, vocabulary))
                if len(made) > MOST:
                    made.popitem(last=False)
            return made[key][1]

    llguidance_backend.from_tokenizer = lambda tokenizer, vocabulary: partial(make, tokenizer, vocabulary)
    llguidance_backend.GuidanceBackend.llguidance_tokenizer = property(
        lambda backend: backend._late_tokenizer(), lambda backend, late: setattr(backend, "_late_tokenizer", late)
    )


def read_ahead(path: str, users: tuple[User, ...]) -> None:
    """Read them now, before they are needed. One that cannot be read will be told of by the activation."""
    assert _kept is not None
    for user in users:
        try:
            _kept.get(user, path)
        except Exception:  # whatever a broken tokenizer raises
            return
