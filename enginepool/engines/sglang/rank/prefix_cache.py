"""What SGLang's prefix caches have in common."""

from __future__ import annotations

from typing import Any


def evictable(tree_cache: Any) -> int:
    """Tokens in entries of the prefix cache that no running request uses."""
    try:
        return int(tree_cache.evictable_size())
    except NotImplementedError:  # one for nothing but sliding windows counts by kind of layer
        return int(tree_cache.full_evictable_size())
