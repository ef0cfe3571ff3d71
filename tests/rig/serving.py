"""A real gateway process for a test, with what a test wants to know of it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
import psutil
import yaml

from enginepool.messages import Command, CommandResult
from gateway.admin_client import read_status, run_command
from gateway.report import ModelStatus, Status, WorkerStatus

PATIENCE = 60.0
"""Seconds after which a test gives up; no measure of speed."""


class ServePrism(Protocol):
    def __call__(self, registry: dict[str, object], *, arguments: tuple[str, ...] = ()) -> Prism: ...


class Prism:
    """`prism serve` on a registry. `log` has all its lines so far."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.admin_socket = folder / "admin.sock"
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self.url = ""

    @classmethod
    def start(
        cls, folder: Path, registry: dict[str, object], arguments: tuple[str, ...] = (), within: tuple[str, ...] = ()
    ) -> Self:
        """Start and wait until it listens. Port and admin socket are set here; invariants are always checked.

        `within` is a command that ends by executing the one behind it.

        Unless the registry says otherwise the policy is `lru`, which activates nothing that nobody has asked for.
        """
        folder.mkdir(parents=True)
        gateway = {"port": 0, "admin_socket": str(folder / "admin.sock"), **dict(registry.get("gateway", {}))}  # type: ignore[call-overload]
        file = folder / "registry.yaml"
        scheduler = {"policy": "lru", **dict(registry.get("scheduler", {}))}  # type: ignore[call-overload]
        file.write_text(yaml.safe_dump({**registry, "gateway": gateway, "scheduler": scheduler}))
        command = [*within, sys.executable, "-m", "gateway.cli", "serve", str(file), "--validate", *arguments]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        prism = cls(process, folder)
        try:
            line = prism.wait_for_log("listening on ")
        except AssertionError:  # No later test is to trip over it.
            prism.kill()
            prism.close()
            raise
        prism.url = line.partition("listening on ")[2]
        return prism

    # its log

    def wait_for_log(self, text: str) -> str:
        """The next unread line that contains `text`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                raise AssertionError(f"no line with {text!r} in:\n" + "\n".join(self.log))
            if text in line:
                return line

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.rstrip("\n"))
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    # asking it

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as response:
            return json.load(response)

    def command(self, name: str, **fields: Any) -> CommandResult:
        return run_command(self.admin_socket, Command(name, **fields))

    def status(self) -> Status:
        return read_status(self.admin_socket)

    def model(self, name: str) -> ModelStatus:
        return next(model for model in self.status().models if model.name == name)

    def worker(self, number: int) -> WorkerStatus:
        return self.status().workers[number]

    def pid(self, number: int) -> int:
        """The process of a worker that has one."""
        pid = self.worker(number).pid
        assert pid is not None, f"worker {number} has no process"
        return pid

    def wait_until(self, holds: Callable[[Status], bool], what: str) -> Status:
        """Ask for the status until `holds(status)`; fails the test, saying `what` was waited for, if it never does."""
        deadline = time.monotonic() + PATIENCE
        while True:
            status = self.status()
            if holds(status):
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"never: {what}; the status is {_readable(status)}")
            time.sleep(0.01)

    def wait_for_workers(self, state: str = "blank") -> None:
        self.wait_until(lambda s: all(w.state == state for w in s.workers), f"all workers are {state}")

    # ending it

    def stop(self) -> int:
        """SIGTERM, as a service manager does; returns its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """SIGKILL: what it owned is left to the kernel and to the next start."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def close(self) -> None:
        if self.process.poll() is None:
            self.stop()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()
        broken = [line for line in self.log if "InvariantBroken" in line]
        assert not broken, f"the scheduler's books do not agree: {broken}"


def _readable(status: Status) -> str:
    return msgspec.json.format(msgspec.json.encode(status), indent=1).decode()


def simulated(*names: str, **sections: Any) -> dict[str, object]:
    """A registry of simulated models; `pool`, `scheduler` and `gateway` are merged in."""
    pool = {"engine": "simulated", **sections.pop("pool", {})}
    return {"pool": pool, "models": [{"name": name} for name in names], **sections}
