"""The scheduler in charge. A change of the policy puts another one in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from config.device_memory import device_bytes
from config.engines import facts_of
from config.model_files import kv_bytes_per_token
from config.registry import Registry
from gateway.device_memory import capacities
from gateway.profile import read_profile
from gateway.recording import Recorder
from scheduler.actions import AnyAction
from scheduler.events import AnyEvent
from scheduler.replay.recorded import VERSION, Header
from scheduler.state.state import State


class CurrentScheduler:
    """With `record`, each scheduler writes its events and decisions to a file: `run.jsonl`, `run.2.jsonl`, ..."""

    def __init__(self, setup: Header, record: Path | None) -> None:
        self._record = record
        self._recordings = 0
        self._recorder: Recorder | None = None
        self.replace(setup)

    def replace(self, setup: Header) -> None:
        """Have a new scheduler, built from `setup`, decide from here on."""
        self.setup = setup
        scheduler = setup.scheduler()
        self.close()
        if self._record is not None:
            self._recordings += 1
            self._recorder = Recorder(_numbered(self._record, self._recordings), setup, scheduler)
        self._scheduler = scheduler
        self._handle = (self._recorder or scheduler).handle

    @property
    def registry(self) -> Registry:
        """With the policy of this scheduler."""
        return self.setup.registry

    @property
    def state(self) -> State:
        return self._scheduler.state

    def handle(self, event: AnyEvent, now: float) -> Sequence[AnyAction]:
        """`Scheduler.handle`, recorded or not."""
        return self._handle(event, now)

    def close(self) -> None:
        """Finish the recording, if there is one."""
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None


def setup_of(registry: Registry, *, validate: bool) -> Header:
    """What the first scheduler is built from.

    Raises:
        ConfigError: the profile cannot be read.
        PoolError: the memory of a GPU is not known.
    """
    return Header(
        VERSION,
        registry,
        weight_bytes={model.name: device_bytes(registry, model) for model in registry.models},
        capacities=capacities(registry.pool),
        kv_bytes={model.name: kv_bytes_per_token(model) for model in registry.models},
        profile=read_profile(registry.scheduler.profile),
        staging=facts_of(registry.pool).needs_weights,
        validate=validate,
    )


def _numbered(record: Path, number: int) -> Path:
    return record if number == 1 else record.with_name(f"{record.stem}.{number}{record.suffix}")
