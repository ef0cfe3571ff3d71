"""Goals for activations on one H200, and whether they are met."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from config.units import format_size

Figures = Mapping[str, Any]
"""The figures of `bench.activation`; those of `bench.swaps`, if it ran, are under `swaps`."""
LARGE, SMALL = "llama-8b", "llama-1b"
FULL_KV = 20 * 2**30
"""Bytes of KV cache for which the goal for a full eviction is defined."""
SWAPS = 200
GIB = 2**30


@dataclass(frozen=True)
class ActivationGoal:
    """One goal. `measure` extracts the figure; None if this run did not measure it."""

    name: str
    bound: float
    unit: str
    measure: Callable[[Figures], float | None]
    at_least: bool = False
    note: Callable[[Figures], str] = lambda _: ""

    def judge(self, figures: Figures, *, real: bool) -> dict[str, Any]:
        measured = self.measure(figures)
        met = None
        if measured is not None and real:
            met = measured >= self.bound if self.at_least else measured <= self.bound
        sign = "≥" if self.at_least else "≤"
        return {
            "name": self.name,
            "text": f"{sign} {self.bound:g} {self.unit}".rstrip(),
            "goal": self.bound,
            "unit": self.unit,
            "measured": measured,
            "met": met,
            "note": self.note(figures),
        }


def judge(figures: Figures, swaps: Mapping[str, Any] | None, *, real: bool) -> list[dict[str, Any]]:
    """All goals with measured figures. `met` is None if a figure is missing or the run was not a `real` one."""
    return [goal.judge({**figures, "swaps": swaps}, real=real) for goal in GOALS]


def _row(model: str, state: str, key: str) -> Callable[[Figures], float | None]:
    def find(figures: Figures) -> float | None:
        rows = (row for row in figures["rows"] if (row["model"], row["state"]) == (model, state))
        value: float | None = next((row[key] for row in rows), None)
        return value

    return find


def _full_eviction(figures: Figures) -> float | None:
    full: Mapping[str, Any] | None = figures["full_eviction"]
    return full["evict_s"] if full is not None and full["kv_bytes"] >= FULL_KV else None


def _full_note(figures: Figures) -> str:
    full = figures["full_eviction"]
    return "" if full is None or full["kv_bytes"] >= FULL_KV else f"only {format_size(full['kv_bytes'])} were mapped"


def _decode(batch: int) -> Callable[[Figures], float | None]:
    def share(figures: Figures) -> float | None:
        own, stock = figures["decode_tokens_per_s"].get(batch), figures["stock_decode_tokens_per_s"].get(batch)
        return own / stock if own and stock else None

    return share


def _swaps(*path: str) -> Callable[[Figures], float | None]:
    def find(figures: Figures) -> float | None:
        value: Any = figures["swaps"]
        for key in path:
            value = value.get(key) if value is not None else None
        return None if value is None else float(value)

    return find


def _from_swaps(figures: Figures) -> str:
    swaps = figures["swaps"]
    return "bench.swaps" if swaps is None else f"{swaps['swaps']} swaps"


def _gib(find: Callable[[Figures], float | None]) -> Callable[[Figures], float | None]:
    def scaled(figures: Figures) -> float | None:
        nbytes = find(figures)
        return None if nbytes is None else nbytes / GIB

    return scaled


def _replaced(key: str) -> Callable[[Figures], float | None]:
    """The figure of the slowest replacement."""

    def find(figures: Figures) -> float | None:
        return max((found[key] for found in figures["replacements_s"] if found[key] is not None), default=None)

    return find


def _busiest_idle(figures: Figures) -> float | None:
    """CPU use of the busiest worker without an active model, in percent of a core."""
    return max((100 * share for state, share in figures["idle_core_share"].items() if state != "active"), default=None)


GOALS = (
    ActivationGoal("8B parked, first token", 0.36, "s", _row(LARGE, "parked", "first_token_s")),
    ActivationGoal("8B blank, first token", 0.60, "s", _row(LARGE, "blank", "first_token_s")),
    ActivationGoal("8B other, first token p50", 0.65, "s", _swaps("waited", LARGE, "other", "p50"), note=_from_swaps),
    ActivationGoal("8B other, first token p95", 1.8, "s", _swaps("waited", LARGE, "other", "p95"), note=_from_swaps),
    ActivationGoal("1B parked, first token", 0.12, "s", _row(SMALL, "parked", "first_token_s")),
    ActivationGoal("8B copy, share of the link", 0.95, "", _row(LARGE, "parked", "link_share"), at_least=True),
    ActivationGoal("8B evicted, KV empty", 0.05, "s", _row(LARGE, "parked", "evict_s")),
    ActivationGoal("8B evicted, 20 GiB of KV", 0.2, "s", _full_eviction, note=_full_note),
    ActivationGoal("decode, 1 stream, of stock SGLang", 0.97, "", _decode(1), at_least=True),
    ActivationGoal("decode, 32 streams, of stock SGLang", 0.97, "", _decode(32), at_least=True),
    ActivationGoal("worker killed, another is blank", 5, "s", _replaced("blank")),
    ActivationGoal("worker killed, its GPU memory is back", 5, "s", _replaced("memory")),
    ActivationGoal("CPU of a blank or parked worker", 1, "% of a core", _busiest_idle),
    ActivationGoal("swaps under load", SWAPS, "", _swaps("swaps"), at_least=True, note=_from_swaps),
    ActivationGoal("failed requests over them", 0, "", _swaps("load", "all", "failed"), note=_from_swaps),
    ActivationGoal("GPU memory lost over them", 100, "MiB", _swaps("device_lost_mib"), note=_from_swaps),
    ActivationGoal("host memory grown over them", 2, "%", _swaps("host_grown_percent"), note=_from_swaps),
    ActivationGoal("GPU memory of a blank worker", 0.8, "GiB", _gib(lambda figures: figures["blank_worker_bytes"])),
    ActivationGoal(
        "GPU memory of a parked 8B", 1.3, "GiB", _gib(lambda figures: figures["parked_worker_bytes"].get(LARGE))
    ),
)
