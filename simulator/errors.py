"""Errors of simulations and of the measurements in `bench`."""

from __future__ import annotations

from config.errors import PrismError


class StudyError(PrismError):
    """A simulation or measurement cannot be made, or its result could not be trusted."""


class UsageError(StudyError):
    """A command line asks for something impossible."""
