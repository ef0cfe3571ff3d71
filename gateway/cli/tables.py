"""Admin answers as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from config.units import format_duration, format_size

RECENT = 8
"""Decisions that `prism status` prints."""


def render_models(data: dict[str, Any]) -> str:
    rows = [
        (
            model["name"],
            model["state"] + (" (pinned)" if model["pinned"] else ""),
            ", ".join(map(str, model["workers"])) or "-",
            model["running"],
            model["waiting"],
            format_size(model["weight_bytes"]) if model["weight_bytes"] else "-",
            _duration(model["activation_s"]),
            _duration(model["idle_s"]),
            model["failure"],
        )
        for model in data["models"]
    ]
    return table(("model", "state", "worker", "running", "waiting", "weights", "activation", "idle", "failure"), rows)


def render_workers(data: dict[str, Any]) -> str:
    rows = [
        (
            worker["worker"],
            worker["device"],
            worker["pid"] or "-",
            worker["state"],
            worker["model"] or "-",
            worker["running"],
            f"{worker['prefill_tokens_per_s']:.0f} + {worker['decode_tokens_per_s']:.0f}",
            _duration(worker["in_state_s"]),
            f"{format_size(worker['kv_bytes'])} / {format_size(worker['kv_limit'])}" if worker["kv_limit"] else "-",
            format_size(worker["gpu_bytes"]) if worker["gpu_bytes"] else "-",
            format_size(worker["rss_bytes"]) if worker["rss_bytes"] else "-",
            worker["restarts"],
        )
        for worker in data["workers"]
    ]
    return table(
        ("worker", "device", "pid", "state", "model", "running", "tokens/s", "for", "KV", "GPU", "RSS", "restarts"),
        rows,
    )


def render_status(data: dict[str, Any]) -> str:
    host = data["host_memory"]
    lines = [
        f"{_readiness(data)}; engine {data['engine']}; policy {data['policy']}; "
        f"{data['in_flight']} requests in flight, {data['waiting']} waiting; "
        f"host memory {format_size(host['used'])} of {format_size(host['capacity'])}",
        *(_device(**device) for device in data["devices"]),
        *(f"loading {name}: {_progress(**progress)}" for name, progress in data["loading"].items()),
        "",
        render_models(data),
        "",
        render_workers(data),
    ]
    if data["decisions"]:
        lines += ["", "latest decisions"]
        lines += [f"  {entry['time'][11:23]}  {entry['text']}" for entry in data["decisions"][-RECENT:]]
    return "\n".join(lines)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as their widest cell; a last column without content is left out."""
    cells = [list(header), *([str(cell) for cell in row] for row in rows)]
    if rows and all(row[-1] == "" for row in cells[1:]):
        cells = [row[:-1] for row in cells]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def _readiness(data: dict[str, Any]) -> str:
    return "ready" if data["ready"] else "not ready (" + "; ".join(data["unready"]) + ")"


def _device(device: str, capacity: int, held: int, weights: int, kv_limit: int, free: int) -> str:
    parts = {"held by workers": held, "weights": weights, "KV cache up to": kv_limit, "free": free}
    return f"{device}: {format_size(capacity)}; " + ", ".join(f"{n} {format_size(size)}" for n, size in parts.items())


def _progress(done: int, total: int) -> str:
    return f"{100 * done / max(total, 1):.0f}% of {format_size(total)}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else format_duration(seconds)
