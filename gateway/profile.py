"""Reads the speeds that a scheduler starts from."""

from __future__ import annotations

from pathlib import Path

import msgspec

from config.errors import ConfigError
from scheduler.learned.profile import Profile


def read_profile(file: Path | None) -> Profile:
    """The profile in a JSON file; an empty one without a file.

    Raises:
        ConfigError: it cannot be read, or is no profile; the text says where.
    """
    if file is None:
        return Profile()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: not a profile: {error}"]) from error
