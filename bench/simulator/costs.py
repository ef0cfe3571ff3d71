"""What one model's steps and changes of state cost under a calibration. Seconds, bytes and tokens."""

from __future__ import annotations

from bench.simulator.calibration import Calibration
from config.shape import Shape


class Costs:
    """Of a model on `tensor_parallel` devices: each has an equal part of its weights and KV cache, and of the work."""

    def __init__(self, calibration: Calibration, shape: Shape, weight_bytes: int, tensor_parallel: int = 1) -> None:
        self.weight_bytes = weight_bytes
        """In host memory; on each device:"""
        self.shard_bytes = -(-weight_bytes // tensor_parallel)
        self.kv_bytes = shape.kv_bytes
        """Per token, on all devices together; on each:"""
        self.shard_kv_bytes = -(-shape.kv_bytes // tensor_parallel)
        self.page_bytes = calibration.kv_pages.bytes * 2 * shape.layers
        self.chunk = calibration.chunk.tokens
        self.held = calibration.held.with_model(self.shard_bytes)
        self.held_parked = calibration.held.parked_bytes
        self.parked_activation = calibration.parked.duration(self.shard_bytes)
        # Building goes on beside the copy: of a small model it takes longer, of a large one the copy does.
        self.blank_activation = max(calibration.blank.duration(self.shard_bytes), self.parked_activation)
        self.load = calibration.disk.duration(weight_bytes)
        self.park = calibration.park.seconds
        self._shape = shape
        self._tensor_parallel = tensor_parallel
        self._exchange = calibration.tensor_parallel.seconds_per_layer * shape.layers if tensor_parallel > 1 else 0.0
        prefill = calibration.prefill
        self._launch = prefill.seconds_per_layer * shape.layers
        self._token_seconds = 2 * shape.active_parameters / prefill.flops_per_s / tensor_parallel
        self._pair_seconds = shape.attention_flops / prefill.attention_flops_per_s / tensor_parallel
        self._decode = calibration.decode
        self._decodes: dict[int, tuple[float, float]] = {}

    def prefill_work(self, tokens: int, before: int) -> float:
        """Seconds of arithmetic for `tokens` of a prompt of which `before` tokens are in the KV cache."""
        return tokens * (self._token_seconds + (before + tokens / 2) * self._pair_seconds)

    def prefill(self, work: float) -> float:
        """Seconds of one step with so many seconds of arithmetic: the kernels are launched meanwhile."""
        return max(self._launch, work) + self._exchange

    def decode(self, batch: int, context: int) -> float:
        """Seconds of one step of `batch` requests whose prompts and answers have `context` tokens together."""
        fixed, per_token = self._decodes.get(batch) or self._decode_of(batch)
        return fixed + context * per_token

    def growth(self, batch: int) -> float:
        """Seconds by which each decode step is longer than the one before."""
        return batch * (self._decodes.get(batch) or self._decode_of(batch))[1]

    def _decode_of(self, batch: int) -> tuple[float, float]:
        """Seconds of a step without context, and for each token of it.

        Both times of attention are proportional to the context: which one is longer is a matter of the batch alone.
        """
        decode, layers = self._decode, self._shape.layers
        weights = self._shape.bytes_read(batch) / decode.weight_bytes_per_s / self._tensor_parallel
        fixed = decode.seconds_per_layer * layers + batch * decode.seconds_per_request + weights + self._exchange
        read = self.kv_bytes / decode.kv_bytes_per_s / self._tensor_parallel
        self._decodes[batch] = fixed, max(decode.attention_seconds * layers / batch, read)
        return self._decodes[batch]

    def tokens_in(self, kv_limit: int) -> int:
        """Tokens for which a KV cache of `kv_limit` bytes on each device has room, in whole pages."""
        return kv_limit // self.page_bytes * self.page_bytes // self.shard_kv_bytes

    def mapped(self, tokens: int) -> int:
        """Bytes of KV cache that `tokens` take on each device, in whole pages."""
        return -(-tokens * self.shard_kv_bytes // self.page_bytes) * self.page_bytes
