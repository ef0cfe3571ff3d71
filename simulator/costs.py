"""What one model's steps and changes of state cost under a calibration. Seconds, bytes and tokens."""

from __future__ import annotations

from config.shape import Shape
from simulator.calibration import Calibration
from simulator.lines import Line, longer
from simulator.sharing import ALONE, Beside, Load


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
        self.shape = shape
        self._tensor_parallel = tensor_parallel
        self._exchange = calibration.tensor_parallel.seconds_per_layer * shape.layers if tensor_parallel > 1 else 0.0
        prefill = calibration.prefill
        self.launch = prefill.seconds_per_layer * shape.layers
        """Seconds of launching a prefill step's kernels;"""
        self.prefill_host = calibration.prefill_host.seconds
        """of what the engine does besides, and of what its process does when it serves the model for the first time."""
        self.first_use = calibration.first_use.duration(self.shard_bytes)
        self._host = calibration.decode_host
        self._front = calibration.front
        self._token_seconds = 2 * shape.active_parameters / prefill.flops_per_s / tensor_parallel
        self._pair_seconds = shape.attention_flops / prefill.attention_flops_per_s / tensor_parallel
        self._decode = calibration.decode
        self._read = shape.kv_bytes / calibration.decode.kv_bytes_per_s / tensor_parallel
        self._longest = shape.kv_bytes / calibration.decode.longest_kv_bytes_per_s

    def prefill_work(self, tokens: int, before: int) -> float:
        """Seconds of arithmetic for `tokens` of a prompt of which `before` tokens are in the KV cache."""
        return tokens * (self._token_seconds + (before + tokens / 2) * self._pair_seconds)

    def prefill(self, work: float) -> float:
        """Seconds of one step with so many seconds of arithmetic: the kernels are launched meanwhile."""
        return self.prefill_beside(work, ALONE)

    def prefill_beside(self, work: float, beside: Beside) -> float:
        """Seconds of such a step among what is around its engine."""
        shared = beside.stretched(Line(work), self.prefill_load(work)).first
        return max(beside.launched(self.launch), shared) + self._exchange

    def prefill_load(self, work: float) -> Load:
        """However short the prompts, all weights are read."""
        busy = max(work, self._weights(1))
        return Load(busy, busy, self.launch + self.prefill_host, self.shape.layers)

    def decode(self, batch: int, context: int, longest: float | None = None) -> float:
        """Seconds that the GPU has for one step of `batch` requests, whose prompts and answers have `context` tokens
        together, the longest of them `longest`: unless that is said, all have the same."""
        return self.decode_line(batch, context, context / batch if longest is None else longest).first

    def decode_line(self, batch: int, context: int, longest: float) -> Line:
        """Likewise of the steps that follow. Attention lasts as long as reading all of the KV cache, or the longest
        request's. On several devices that is read no faster: each has fewer of its heads, and fewer blocks for them."""
        decode = self._decode
        fixed = decode.seconds_per_layer * self.shape.layers + batch * decode.seconds_per_request
        every, one = self._read * context, self._longest * longest
        attention = longer(Line(every, self._read * batch), Line(one, self._longest))
        return attention.plus(fixed + self._weights(batch) + self._exchange)

    def decode_beside(self, batch: int, context: int, longest: float, beside: Beside) -> tuple[Line, Load]:
        """Such steps among what is around their engine, and what they ask for. A step is never shorter than what its
        host needs for it."""
        gpu = self.decode_line(batch, context, longest)
        load = self.decode_load(gpu.first, batch, context, resident=beside.resident)
        return longer(beside.stretched(gpu, load), Line(load.host)), load

    def decode_load(self, gpu: float, batch: int, context: int, *, resident: bool) -> Load:
        """Of steps that the GPU has for `gpu` seconds; `resident`: other workers of the device have models, too."""
        host = self._host.seconds + batch * self._host.seconds_per_request + resident * self._host.seconds_beside
        return Load(gpu, self._weights(batch) + self._read * context, host, self.shape.layers)

    def front(self, prompt_tokens: int) -> float:
        """Seconds that a request is on its way to its engine and its first token on the way back."""
        return self._front.seconds + prompt_tokens * self._front.seconds_per_token

    def _weights(self, batch: int) -> float:
        """Seconds in which a decode step reads its weights."""
        return self.shape.bytes_read(batch) / self._decode.weight_bytes_per_s / self._tensor_parallel

    def tokens_in(self, kv_limit: int) -> int:
        """Tokens for which a KV cache of `kv_limit` bytes on each device has room, in whole pages."""
        return kv_limit // self.page_bytes * self.page_bytes // self.shard_kv_bytes

    def mapped(self, tokens: int) -> int:
        """Bytes of KV cache that `tokens` take on each device, in whole pages."""
        return -(-tokens * self.shard_kv_bytes // self.page_bytes) * self.page_bytes
