"""The command `prism`."""

from gateway.cli.main import main

__all__ = ["main"]
