"""Prometheus metrics. Counters are updated as things happen; gauges are read from the state when scraped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.live import LiveRequest
from scheduler.state.phases import Phase
from scheduler.state.state import State

TTFT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TPOT_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0)
ACTIVATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0)


class Metrics:
    def __init__(self, state: Callable[[], State], live: Mapping[int, LiveRequest]) -> None:
        self._registry = CollectorRegistry()
        self._per_model: dict[str, _ModelMetrics] = {}
        self._requests = Counter(
            "prism_requests", "Requests by model and outcome (HTTP status, aborted, or why refused)",
            ["model", "outcome"], registry=self._registry,
        )  # fmt: skip
        self._ttft = Histogram(
            "prism_ttft_seconds", "Arrival to first token", ["model"], buckets=TTFT_BUCKETS, registry=self._registry
        )
        self._tpot = Histogram(
            "prism_tpot_seconds", "Time per output token after the first, streamed requests",
            ["model"], buckets=TPOT_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._met = Counter(
            "prism_ttft_slo_met", "Requests whose first token came within their TTFT SLO",
            ["model"], registry=self._registry,
        )  # fmt: skip
        self._prompt_tokens = Counter("prism_prompt_tokens", "Prefilled", ["model"], registry=self._registry)
        self._output_tokens = Counter("prism_output_tokens", "Decoded", ["model"], registry=self._registry)
        self._activation = Histogram(
            "prism_activation_seconds", "Command to ready to serve",
            ["model"], buckets=ACTIVATION_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self.evictions = Counter("prism_evictions", "Models parked", ["model"], registry=self._registry)
        self.worker_deaths = Counter("prism_worker_deaths", "Workers that ended unasked", registry=self._registry)
        self._registry.register(_StateCollector(state, live))

    def render(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def first_token(self, live: LiveRequest) -> None:
        assert live.first_token_at is not None
        ttft = live.first_token_at - live.arrived
        model = self._of(live.model)
        model.ttft.observe(ttft)
        if ttft <= live.slo:
            model.met.inc()

    def finished(self, live: LiveRequest, status: int, prompt_tokens: int, output_tokens: int) -> None:
        model = self._of(live.model)
        model.outcome(status).inc()
        model.prompt_tokens.inc(prompt_tokens)
        model.output_tokens.inc(output_tokens)
        if live.stream is not None and live.first_token_at is not None and output_tokens > 1:
            model.tpot.observe((time.monotonic() - live.first_token_at) / (output_tokens - 1))

    def refused(self, live: LiveRequest, kind: str) -> None:
        self._of(live.model).outcome(kind).inc()

    def aborted(self, live: LiveRequest) -> None:
        self._of(live.model).outcome("aborted").inc()

    def activated(self, model: str, seconds: float) -> None:
        self._activation.labels(model).observe(seconds)

    def _of(self, model: str) -> _ModelMetrics:
        found = self._per_model.get(model)
        if found is None:
            found = self._per_model[model] = _ModelMetrics(self, model)
        return found


class _ModelMetrics:
    """One model's children of the labelled metrics, so that requests need no label look-ups."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._model = model
        self._requests = metrics._requests
        self._outcomes: dict[int | str, Counter] = {}
        self.ttft = metrics._ttft.labels(model)
        self.tpot = metrics._tpot.labels(model)
        self.met = metrics._met.labels(model)
        self.prompt_tokens = metrics._prompt_tokens.labels(model)
        self.output_tokens = metrics._output_tokens.labels(model)

    def outcome(self, outcome: int | str) -> Counter:
        found = self._outcomes.get(outcome)
        if found is None:
            found = self._outcomes[outcome] = self._requests.labels(self._model, str(outcome))
        return found


class _StateCollector(Collector):
    def __init__(self, state: Callable[[], State], live: Mapping[int, LiveRequest]) -> None:
        self._state = state
        self._live = live

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        state = self._state()
        waiting = GaugeMetricFamily("prism_requests_waiting", "Requests without a worker", labels=["model"])
        for model in state.models.values():
            waiting.add_metric([model.name], len(model.queue))
        yield waiting
        running = GaugeMetricFamily("prism_requests_running", "Requests on a worker", labels=["worker"])
        for worker in state.workers:
            running.add_metric([str(worker.number)], len(worker.running))
        yield running
        phases = GaugeMetricFamily("prism_workers", "Workers by phase", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase.value], sum(worker.phase is phase for worker in state.workers))
        yield phases
        memory = GaugeMetricFamily("prism_device_memory_bytes", "As shared out", labels=["device", "kind"])
        for device in state.devices.values():
            for kind, nbytes in device.ledger.by_kind().items() if device.accounted else ():
                memory.add_metric([device.name, kind], nbytes)
        yield memory
        yield GaugeMetricFamily("prism_requests_in_flight", "Requests in the gateway", value=len(self._live))
        yield GaugeMetricFamily("prism_host_memory_bytes", "Weights in host memory", value=state.staged_bytes())
        yield GaugeMetricFamily("prism_host_memory_capacity_bytes", "Budget for weights", value=state.host.capacity)
