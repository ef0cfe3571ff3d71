"""Caches tokenizers, which SGLang would read up to five times per activation, half a second each.

The grammar backend's view of a tokenizer takes as long again, so it is created at the first request with a grammar. And
SGLang searches the chat template and the whole vocabulary for signs of reasoning and tools, 0.2 s for a large one; this
is cached too.

Written for SGLang 0.5.17. The model's folder alone is the cache key, since Prism's registry cannot change the other
arguments.
"""

from __future__ import annotations

import importlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

User = Literal["manager", "detokenizer", "rank"]
"""Who uses a tokenizer. Users in different threads get separate tokenizers, which are not thread-safe."""

FRONT: tuple[User, ...] = ("manager", "detokenizer")
RANK: tuple[User, ...] = ("rank",)
MOST = 32
"""Tokenizers cached per process: some 10 MB each, or 100 MB with a large vocabulary."""

_MODULES: dict[str, User] = {
    "sglang.srt.managers.tokenizer_manager": "manager",
    "sglang.srt.managers.detokenizer_manager": "detokenizer",
    "sglang.srt.managers.tp_worker": "rank",
    "sglang.srt.managers.scheduler": "rank",
    "sglang.srt.utils.hf_transformers_utils": "manager",
}
"""The modules in which SGLang looks up `get_tokenizer`, and for which user."""


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
    """Make SGLang use the cache. Once per process, after SGLang was imported."""
    global _kept
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    kept = _kept = _Kept(get_tokenizer)

    def getter(user: User) -> Callable[..., Any]:
        return lambda path, *args, **kwargs: kept.get(user, path, *args, **kwargs)

    for name, user in _MODULES.items():
        vars(importlib.import_module(name))["get_tokenizer"] = getter(user)


class ByTokenizer:
    """Caches the results of `make(tokenizer, other)` by its arguments."""

    def __init__(self, make: Callable[[Any, Any], Any]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: OrderedDict[tuple[int, Any], tuple[Any, Any]] = OrderedDict()
        """Values include the tokenizers, so that their ids, which are part of the keys, are not reused."""

    def get(self, tokenizer: Any, other: Any) -> Any:
        with self._lock:
            key = (id(tokenizer), other)
            if key not in self._made:
                self._made[key] = (tokenizer, self._make(tokenizer, other))
                if len(self._made) > MOST:
                    self._made.popitem(last=False)
            return self._made[key][1]


def detect_once() -> None:
    """Make SGLang detect reasoning and tools only once per tokenizer and template."""
    from sglang.srt.parser.template_manager import TemplateManager

    detect = TemplateManager._run_template_detection

    def findings(tokenizer: Any, template: Any) -> dict[str, Any]:
        manager = TemplateManager()
        before = dict(vars(manager))
        detect(manager, template, tokenizer)
        return {name: value for name, value in vars(manager).items() if value != before[name]}

    detected = ByTokenizer(findings)

    def detect_or_remember(manager: Any, template: Any, tokenizer: Any) -> None:
        if isinstance(template, str):
            vars(manager).update(detected.get(tokenizer, template))
        else:
            detect(manager, template, tokenizer)

    TemplateManager._run_template_detection = detect_or_remember


def make_grammars_late() -> None:
    """Delay llguidance's processing of a tokenizer until a grammar needs it, in SGLang's grammar thread."""
    from sglang.srt.constrained import llguidance_backend

    read = llguidance_backend.from_tokenizer
    make = ByTokenizer(lambda tokenizer, rest: read(tokenizer, *rest)).get
    llguidance_backend.from_tokenizer = lambda tokenizer, vocabulary, eos_token: partial(
        make, tokenizer, (vocabulary, _hashable(eos_token))
    )
    llguidance_backend.GuidanceBackend.llguidance_tokenizer = property(
        lambda backend: backend._late_tokenizer(), lambda backend, late: setattr(backend, "_late_tokenizer", late)
    )


def _hashable(eos_token: int | list[int] | None) -> int | tuple[int, ...] | None:
    return tuple(sorted(eos_token)) if isinstance(eos_token, list) else eos_token


def preload_tokenizers(path: str, users: tuple[User, ...]) -> None:
    """Read tokenizers before they are needed. Errors are left to the activation to report."""
    from sglang.srt.parser.template_manager import TemplateManager

    assert _kept is not None
    for user in users:
        try:
            tokenizer = _kept.get(user, path)
            if user == "manager":
                TemplateManager()._run_template_detection(getattr(tokenizer, "chat_template", None), tokenizer)
        except Exception:  # a broken tokenizer may raise anything
            return
