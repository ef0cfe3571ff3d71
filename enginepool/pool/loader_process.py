"""The loader process: writes one model's weights into a segment, hands the segment over and ends.

A separate process, so that reading gigabytes stalls neither the gateway's event loop nor a serving worker.
"""

from __future__ import annotations

import socket
import time

from config.errors import ChannelClosed, StoreError
from config.registry import PoolConfig
from enginepool.channel import BlockingChannel
from enginepool.engines.kinds import kind_of
from enginepool.messages import Exit, Load, Loaded, LoadFailed, LoadProgress, Spawn, ToLoader
from enginepool.weights.loader import LoadWeights

PROGRESS_INTERVAL = 0.1
"""Seconds between progress reports."""


def run_loader(spawn: Spawn, pool: PoolConfig) -> None:
    """Serve the gateway's commands until it says Exit or is gone."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(spawn.socket)
    channel: BlockingChannel[ToLoader] = BlockingChannel(connection, ToLoader)
    try:
        _serve(channel, kind_of(pool).weight_loader(pool))
    except ChannelClosed:
        return


def _serve(channel: BlockingChannel[ToLoader], load: LoadWeights) -> None:
    while True:
        for command in channel.receive():
            if isinstance(command, Exit):
                return
            _load(channel, load, command)


def _load(channel: BlockingChannel[ToLoader], load: LoadWeights, command: Load) -> None:
    last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_INTERVAL or done == total:
            last = now
            channel.send(LoadProgress(command.model.name, done, total))

    try:
        manifest, segment = load(command.model, report)
    except StoreError as error:
        channel.send(LoadFailed(command.model.name, str(error)))
    else:
        channel.send(Loaded(manifest, segment.ref))
