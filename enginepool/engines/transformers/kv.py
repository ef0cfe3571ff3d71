"""The KV cache's size in bytes: per token, reserved by running requests, and its limit."""

from __future__ import annotations

from transformers import PreTrainedConfig

from enginepool.messages import KvLimitApplied


def values_per_token(config: PreTrainedConfig) -> int:
    """Numbers in one token's keys and values, over all layers; sliding windows are not taken into account."""
    text = config.get_text_config(decoder=True)
    heads: int = text.num_attention_heads
    kv_heads: int = getattr(text, "num_key_value_heads", None) or heads
    head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // heads
    layers: int = text.num_hidden_layers
    return layers * 2 * kv_heads * head_dim


class KvBudget:
    """Reserves for each request the maximum it may need, so that a running one never has to be evicted."""

    def __init__(self) -> None:
        self.limit = 0
        """Bytes; 0 for no limit."""
        self.held = 0
        self._revision: int | None = None

    def set_limit(self, revision: int, nbytes: int) -> None:
        self.limit = nbytes
        self._revision = revision

    def ever_fits(self, nbytes: int) -> bool:
        return not self.limit or nbytes <= self.limit

    def fits(self, nbytes: int) -> bool:
        return self.ever_fits(self.held + nbytes)

    def take(self, nbytes: int) -> None:
        self.held += nbytes

    def give(self, nbytes: int) -> None:
        self.held -= nbytes

    def applied(self) -> KvLimitApplied | None:
        """KvLimitApplied for the latest limit, once, as soon as it holds; else None."""
        if self._revision is None or not self.fits(0):
            return None
        revision, self._revision = self._revision, None
        return KvLimitApplied(revision, self.held)
