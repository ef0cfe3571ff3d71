"""When the policy is asked, and that what it decides is done."""

from __future__ import annotations

from scheduler.flow.dispatching import Dispatching
from scheduler.flow.isolation import Isolations
from scheduler.flow.lifecycle import Lifecycle
from scheduler.flow.reaction import Reaction
from scheduler.policies.policy import Policy
from scheduler.state.device_view import DeviceView
from scheduler.state.entities import Model
from scheduler.state.state import State


class Planning:
    def __init__(
        self,
        state: State,
        reaction: Reaction,
        policy: Policy,
        dispatching: Dispatching,
        lifecycle: Lifecycle,
        isolations: Isolations,
    ) -> None:
        self._state = state
        self._reaction = reaction
        self._policy = policy
        self._dispatching = dispatching
        self._lifecycle = lifecycle
        self._isolations = isolations
        self._seen_to: dict[str, DeviceView] = {}
        """Devices as they were when they were last seen to."""

    def serve(self, model: Model) -> None:
        """After a change of a model's queue or workers: dispatch what can run, and plan if anyone lacks a worker."""
        self._dispatching.dispatch(model)
        self._state.update_wanting(model, self._reaction.now)
        if self._state.wanting:
            self.plan()

    def plan(self) -> None:
        if self._state.apart:
            self._reaction.actions += self._isolations.find_places(self._reaction.now)
        for decision in self._policy.plan(self._state, self._reaction.now):
            self._lifecycle.decide(decision)
        self._see_to_devices()

    def _see_to_devices(self) -> None:
        """Most events change one device of a thousand. The others are left alone: an unchanged view means that
        nothing has moved there but time, and whoever waits for time to pass has a view that shows it preparing.
        """
        for device in self._state.devices.values():
            view = self._state.view(device)
            if view.preparing or view is not self._seen_to.get(device.name):
                self._lifecycle.advance(device)
                self._seen_to[device.name] = self._state.view(device)

    def forget_devices(self) -> None:
        """The next plan sees to all devices: KV limits follow demand, which no view shows."""
        self._seen_to.clear()
