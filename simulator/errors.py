"""What can go wrong in a simulation, or in a measurement of `bench`."""

from __future__ import annotations

from config.errors import PrismError


class StudyError(PrismError):
    """A simulation or a measurement cannot be made, or what it would say is not to be trusted."""


class UsageError(StudyError):
    """A command line asks for what cannot be."""
