"""The costs of one model's steps and state changes under a calibration, in seconds, bytes and tokens."""

from __future__ import annotations

from config.shape import Shape
from simulator.calibration import Calibration
from simulator.sharing import ALONE, Contention, StepLoad
from simulator.step_times import StepTimes, longer


class Costs:
    """The costs of a model on `tensor_parallel` devices, which share weights, KV cache and work equally."""

    def __init__(self, calibration: Calibration, shape: Shape, weight_bytes: int, tensor_parallel: int = 1) -> None:
        self.weight_bytes = weight_bytes
        """All weights, as in host memory."""
        self.shard_bytes = -(-weight_bytes // tensor_parallel)
        """Weights on each device."""
        self.kv_bytes = shape.kv_bytes
        """KV cache per token, on all devices together."""
        self.shard_kv_bytes = -(-shape.kv_bytes // tensor_parallel)
        """KV cache per token on each device."""
        self.page_bytes = calibration.kv_pages.bytes * 2 * shape.layers
        self.chunk = calibration.chunk.tokens
        self.held = calibration.held.with_model(self.shard_bytes)
        self.held_parked = calibration.held.parked_bytes
        self.parked_activation = calibration.parked.duration(self.shard_bytes)
        # The engine is built while the weights are copied: building takes longer for a small model, copying for a
        # large one.
        self.blank_activation = max(calibration.blank.duration(self.shard_bytes), self.parked_activation)
        self.load = calibration.disk.duration(weight_bytes)
        self.park = calibration.park.seconds
        self.shape = shape
        self._tensor_parallel = tensor_parallel
        self._exchange = calibration.tensor_parallel.seconds_per_layer * shape.layers if tensor_parallel > 1 else 0.0
        prefill = calibration.prefill
        self.launch = prefill.seconds_per_layer * shape.layers
        """Seconds to launch a prefill step's kernels."""
        self.prefill_host = calibration.prefill_host.seconds
        """Host seconds of a prefill step besides launching kernels."""
        self.first_use = calibration.first_use.duration(self.shard_bytes)
        """Additional seconds of a process's first prefill of the model."""
        self._host = calibration.decode_host
        self._front = calibration.front
        self._token_seconds = 2 * shape.active_parameters / prefill.flops_per_s / tensor_parallel
        self._pair_seconds = shape.attention_flops / prefill.attention_flops_per_s / tensor_parallel
        self._decode = calibration.decode
        self._read = shape.kv_bytes / calibration.decode.kv_bytes_per_s / tensor_parallel
        self._longest = shape.kv_bytes / calibration.decode.longest_kv_bytes_per_s

    def prefill_work(self, tokens: int, before: int) -> float:
        """Seconds of arithmetic to prefill `tokens` of a prompt that already has `before` tokens in the KV cache."""
        return tokens * (self._token_seconds + (before + tokens / 2) * self._pair_seconds)

    def prefill(self, work: float) -> float:
        """Seconds of one prefill step with `work` seconds of arithmetic, during which the kernels are launched."""
        return self.contended_prefill(work, ALONE)

    def contended_prefill(self, work: float, contention: Contention) -> float:
        """Seconds of one prefill step under contention."""
        shared = contention.stretched(StepTimes(work), self.prefill_load(work)).first
        return max(contention.launched(self.launch), shared) + self._exchange

    def prefill_load(self, work: float) -> StepLoad:
        """The load of a prefill step, which reads all weights however short the prompts are."""
        busy = max(work, self._weights(1))
        return StepLoad(busy, busy, self.launch + self.prefill_host, self.shape.layers)

    def decode(self, batch: int, context: int, longest: float | None = None) -> float:
        """GPU seconds of one step of `batch` requests with `context` tokens in total and `longest` in the longest one;
        without `longest`, all are equally long."""
        return self.decode_times(batch, context, context / batch if longest is None else longest).first

    def decode_times(self, batch: int, context: int, longest: float) -> StepTimes:
        """GPU seconds of this step and those that follow. Attention takes as long as reading the whole KV cache or the
        longest context. Several devices read the longest context no faster: each has fewer heads, and so fewer blocks
        working on it."""
        decode = self._decode
        fixed = decode.seconds_per_layer * self.shape.layers + batch * decode.seconds_per_request
        every, one = self._read * context, self._longest * longest
        attention = longer(StepTimes(every, self._read * batch), StepTimes(one, self._longest))
        return attention.plus(fixed + self._weights(batch) + self._exchange)

    def contended_decode(
        self, batch: int, context: int, longest: float, contention: Contention
    ) -> tuple[StepTimes, StepLoad]:
        """Durations of decode steps under contention, and their load. A step takes at least its host time."""
        gpu = self.decode_times(batch, context, longest)
        load = self.decode_load(gpu.first, batch, context, resident=contention.resident)
        return longer(contention.stretched(gpu, load), StepTimes(load.host)), load

    def decode_load(self, gpu: float, batch: int, context: int, *, resident: bool) -> StepLoad:
        """The load of decode steps of `gpu` GPU seconds; `resident`: other workers of the device have models too."""
        host = self._host.seconds + batch * self._host.seconds_per_request + resident * self._host.seconds_beside
        return StepLoad(gpu, self._weights(batch) + self._read * context, host, self.shape.layers)

    def front(self, prompt_tokens: int) -> float:
        """Seconds for a request to reach its engine and its first token to come back."""
        return self._front.seconds + prompt_tokens * self._front.seconds_per_token

    def _weights(self, batch: int) -> float:
        """Seconds for a decode step to read its weights."""
        return self.shape.bytes_read(batch) / self._decode.weight_bytes_per_s / self._tensor_parallel

    def tokens_in(self, kv_limit: int) -> int:
        """Tokens that fit into a KV cache of `kv_limit` bytes per device, in whole pages."""
        return kv_limit // self.page_bytes * self.page_bytes // self.shard_kv_bytes

    def mapped(self, tokens: int) -> int:
        """Bytes of KV cache for `tokens` on each device, in whole pages."""
        return -(-tokens * self.shard_kv_bytes // self.page_bytes) * self.page_bytes
