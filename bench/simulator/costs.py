"""What one model's steps and changes of state cost under a calibration. Seconds, bytes and tokens."""

from __future__ import annotations

from bench.simulator.calibration import Calibration
from bench.simulator.shape import Shape


class Costs:
    """Of a model on `tensor_parallel` devices: each has an equal part of its weights and KV cache, and of the work."""

    def __init__(self, calibration: Calibration, shape: Shape, weight_bytes: int, tensor_parallel: int = 1) -> None:
        self.weight_bytes = weight_bytes
        """In host memory; on each device:"""
        self.shard_bytes = -(-weight_bytes // tensor_parallel)
        self.kv_bytes = shape.kv_bytes
        """Per token, on all devices together; on each:"""
        self.shard_kv_bytes = -(-shape.kv_bytes // tensor_parallel)
        exchange = calibration.tensor_parallel.seconds_per_layer * shape.layers if tensor_parallel > 1 else 0.0
        self.page_bytes = calibration.kv_pages.bytes * 2 * shape.layers
        self.chunk = calibration.chunk.tokens
        self.prefill_step = calibration.prefill.seconds + exchange
        self.held = calibration.held.with_model(self.shard_bytes)
        self.parked_activation = calibration.parked.duration(self.shard_bytes)
        self.blank_activation = calibration.blank.duration(self.shard_bytes)
        self.load = calibration.disk.duration(weight_bytes)
        self.park = calibration.park.duration(self.shard_bytes)
        self._shape = shape
        self._decode_step = calibration.decode.seconds + exchange
        self._request_seconds = calibration.decode.seconds_per_request
        self._bytes_per_s = calibration.decode.bytes_per_s * tensor_parallel
        flops_per_s = calibration.prefill.flops_per_s * tensor_parallel
        self._token_flops_seconds = 2 * shape.active_parameters / flops_per_s
        self._pair_flops_seconds = shape.attention_flops / flops_per_s
        self._weights_seconds: dict[int, float] = {}

    def prefill(self, tokens: int, before: int) -> float:
        """Seconds that `tokens` of a prompt take, besides the step's own; `before` of it are in the KV cache."""
        pairs = tokens * (before + tokens / 2)
        return tokens * self._token_flops_seconds + pairs * self._pair_flops_seconds

    def decode(self, batch: int, context: int) -> float:
        """Seconds of one step of `batch` requests whose prompts and answers have `context` tokens together."""
        if batch not in self._weights_seconds:
            self._weights_seconds[batch] = self._shape.bytes_read(batch) / self._bytes_per_s
        return (
            self._decode_step
            + batch * self._request_seconds
            + self._weights_seconds[batch]
            + context * self.kv_bytes / self._bytes_per_s
        )

    def growth(self, batch: int) -> float:
        """Seconds by which each decode step is longer than the one before."""
        return batch * self.kv_bytes / self._bytes_per_s

    def tokens_in(self, kv_limit: int) -> int:
        """Tokens for which a KV cache of `kv_limit` bytes on each device has room, in whole pages."""
        return kv_limit // self.page_bytes * self.page_bytes // self.shard_kv_bytes

    def mapped(self, tokens: int) -> int:
        """Bytes of KV cache that `tokens` take on each device, in whole pages."""
        return -(-tokens * self.shard_kv_bytes // self.page_bytes) * self.page_bytes
