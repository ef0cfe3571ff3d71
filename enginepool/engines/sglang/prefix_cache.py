"""A uniform view of SGLang's prefix caches."""

from __future__ import annotations

from typing import Any


def evictable(tree_cache: Any) -> int:
    """Tokens in prefix-cache entries that no running request uses."""
    try:
        return int(tree_cache.evictable_size())
    except NotImplementedError:  # the cache for sliding-window models counts by kind of layer
        return int(tree_cache.full_evictable_size())
