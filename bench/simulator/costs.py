"""What one model's steps and changes of state cost under a calibration. Seconds, bytes and tokens."""

from __future__ import annotations

from bench.simulator.calibration import Calibration
from bench.simulator.shape import Shape


class Costs:
    def __init__(self, calibration: Calibration, shape: Shape, weight_bytes: int) -> None:
        self.weight_bytes = weight_bytes
        self.kv_bytes = shape.kv_bytes
        self.page_bytes = calibration.kv_pages.bytes * shape.kv_buffers
        self.chunk = calibration.chunk.tokens
        self.prefill_step = calibration.prefill.seconds
        self.held = calibration.held.with_model(weight_bytes)
        self.parked_activation = calibration.parked.duration(weight_bytes)
        self.blank_activation = calibration.blank.duration(weight_bytes)
        self.load = calibration.disk.duration(weight_bytes)
        self.park = calibration.park.duration(weight_bytes)
        self._shape = shape
        self._decode = calibration.decode
        self._token_flops_seconds = 2 * shape.active_parameters / calibration.prefill.flops_per_s
        self._pair_flops_seconds = shape.attention_flops / calibration.prefill.flops_per_s
        self._weights_seconds: dict[int, float] = {}

    def prefill(self, tokens: int, before: int) -> float:
        """Seconds that `tokens` of a prompt take, besides the step's own; `before` of it are in the KV cache."""
        pairs = tokens * (before + tokens / 2)
        return tokens * self._token_flops_seconds + pairs * self._pair_flops_seconds

    def decode(self, batch: int, context: int) -> float:
        """Seconds of one step of `batch` requests whose prompts and answers have `context` tokens together."""
        if batch not in self._weights_seconds:
            self._weights_seconds[batch] = self._shape.bytes_read(batch) / self._decode.bytes_per_s
        return (
            self._decode.seconds
            + batch * self._decode.seconds_per_request
            + self._weights_seconds[batch]
            + context * self.kv_bytes / self._decode.bytes_per_s
        )

    def growth(self, batch: int) -> float:
        """Seconds by which each decode step is longer than the one before."""
        return batch * self.kv_bytes / self._decode.bytes_per_s

    def tokens_in(self, kv_limit: int) -> int:
        """Tokens for which a KV cache of `kv_limit` bytes has room, in whole pages."""
        return kv_limit // self.page_bytes * self.page_bytes // self.kv_bytes

    def mapped(self, tokens: int) -> int:
        """Bytes of KV cache that `tokens` take, in whole pages."""
        return -(-tokens * self.kv_bytes // self.page_bytes) * self.page_bytes
