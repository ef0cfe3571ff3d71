"""The answers to `prism status`, `models` and `workers` as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from config.units import format_duration, format_size
from gateway.report import DeviceStatus, LoadStatus, ModelStatus, Status, WorkerStatus

RECENT = 8
"""How many of the latest decisions `prism status` prints."""


def render_models(models: Sequence[ModelStatus]) -> str:
    rows = [
        (
            model.name,
            model.state + (" (pinned)" if model.pinned else ""),
            ", ".join(map(str, model.workers)) or "-",
            model.running,
            model.waiting,
            format_size(model.weight_bytes) if model.weight_bytes else "-",
            _duration(model.activation_s),
            _duration(model.idle_s),
            model.failure,
        )
        for model in models
    ]
    return table(("model", "state", "worker", "running", "waiting", "weights", "activation", "idle", "failure"), rows)


def render_workers(workers: Sequence[WorkerStatus]) -> str:
    rows = [
        (
            worker.worker,
            worker.device,
            worker.pid or "-",
            worker.state,
            worker.model or "-",
            worker.running,
            f"{worker.prefill_tokens_per_s:.0f} + {worker.decode_tokens_per_s:.0f}",
            _duration(worker.in_state_s),
            f"{format_size(worker.kv_bytes)} / {format_size(worker.kv_limit)}" if worker.kv_limit else "-",
            format_size(worker.gpu_bytes) if worker.gpu_bytes else "-",
            format_size(worker.rss_bytes) if worker.rss_bytes else "-",
            worker.restarts,
        )
        for worker in workers
    ]
    return table(
        ("worker", "device", "pid", "state", "model", "running", "tokens/s", "for", "KV", "GPU", "RSS", "restarts"),
        rows,
    )


def render_status(status: Status) -> str:
    host = status.host_memory
    lines = [
        f"{_readiness(status)}; engine {status.engine}; policy {status.policy}; "
        f"{status.in_flight} requests in flight, {status.waiting} waiting; "
        f"host memory {format_size(host.used)} of {format_size(host.capacity)}",
        *(_device(device) for device in status.devices),
        *(f"loading {name}: {_progress(load)}" for name, load in status.loading.items()),
        "",
        render_models(status.models),
        "",
        render_workers(status.workers),
    ]
    if status.decisions:
        lines += ["", "latest decisions"]
        lines += [f"  {entry.time[11:23]}  {entry.text}" for entry in status.decisions[-RECENT:]]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns are as wide as their widest cell; the last column is omitted if it is empty."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    if rows and all(row[-1] == "" for row in cells[1:]):
        cells = [row[:-1] for row in cells]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _readiness(status: Status) -> str:
    return "ready" if status.ready else "not ready (" + "; ".join(status.unready) + ")"


def _device(it: DeviceStatus) -> str:
    parts = {"held by workers": it.held, "weights": it.weights, "KV cache up to": it.kv_limit, "free": it.free}
    shares = ", ".join(f"{name} {format_size(size)}" for name, size in parts.items())
    return f"{it.device}: {format_size(it.capacity)}; {shares}"


def _progress(load: LoadStatus) -> str:
    return f"{100 * load.done / max(load.total, 1):.0f}% of {format_size(load.total)}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)
