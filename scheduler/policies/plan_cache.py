"""What one plan asks again and again. While it is made, only its own decisions change the state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from scheduler.state.device_view import DeviceView
from scheduler.state.entities import Device
from scheduler.state.state import State

T = TypeVar("T")


class PlanCache:
    """Answers hold until a worker changes its phase, and for one plan: time and requests go on between two."""

    def __init__(self) -> None:
        self._changes = -1
        self._answers: dict[object, Any] = {}
        self._by_device: dict[object, tuple[DeviceView, Any]] = {}

    def forget(self) -> None:
        self._answers.clear()
        self._by_device.clear()

    def of(self, state: State, question: object, answer: Callable[[], T]) -> T:
        if self._changes != state.phase_changes:
            self._changes = state.phase_changes
            self._answers.clear()
        if question not in self._answers:
            self._answers[question] = answer()
        found: T = self._answers[question]
        return found

    def on(self, state: State, device: Device, question: str, answer: Callable[[], T]) -> T:
        """Likewise of one device, until a worker of that one changes its phase, or its ledger changes.

        For what the plan's own decisions on other devices may change a little, and that does not matter.
        """
        view, key = state.view(device), (question, device.name)
        known = self._by_device.get(key)
        if known is None or known[0] is not view:
            known = self._by_device[key] = (view, answer())
        found: T = known[1]
        return found
