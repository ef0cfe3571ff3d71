"""The CLI's side of the admin socket. The benchmarks and the tests use it too."""

from __future__ import annotations

import socket
from pathlib import Path

from config.errors import ChannelError, OperatorError
from enginepool.channel import BlockingChannel
from enginepool.messages import Command, CommandResult
from gateway.report import ModelsReport, ModelStatus, Status, WorkersReport, WorkerStatus, read


def read_status(admin_socket: Path) -> Status:
    """Everything at one moment.

    Raises:
        OperatorError: no gateway answers, or not as this version expects.
    """
    return read(run_command(admin_socket, Command("status")), Status)


def read_models(admin_socket: Path) -> list[ModelStatus]:
    """
    Raises:
        OperatorError: no gateway answers, or not as this version expects.
    """
    return read(run_command(admin_socket, Command("models")), ModelsReport).models


def read_workers(admin_socket: Path) -> list[WorkerStatus]:
    """
    Raises:
        OperatorError: no gateway answers, or not as this version expects.
    """
    return read(run_command(admin_socket, Command("workers")), WorkersReport).workers


def run_command(admin_socket: Path, command: Command) -> CommandResult:
    """Run one command and wait for its result; `stop` waits until the gateway is gone.

    Raises:
        OperatorError: no gateway answers at this socket, or it ended before it answered.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(admin_socket))
        except OSError as error:
            raise OperatorError(f"no gateway answers at {admin_socket}: {error.strerror}") from error
        channel: BlockingChannel[CommandResult] = BlockingChannel(connection, CommandResult)
        try:
            channel.send(command)
            result = channel.receive()[0]
        except ChannelError as error:
            raise OperatorError(f"the gateway ended before it answered: {error}") from error
        if command.name == "stop" and result.ok:
            _wait_for_end(channel)
        return result


def _wait_for_end(channel: BlockingChannel[CommandResult]) -> None:
    try:
        channel.receive()
    except ChannelError:
        return
