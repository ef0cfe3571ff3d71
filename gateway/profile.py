"""Reads the profile: the speeds that a scheduler assumes until it has measured its own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from config.errors import ConfigError
from scheduler.learned.profile import Profile


def read_profile(file: Path | None) -> Profile:
    """The profile in a JSON file, or an empty one if there is no file.

    Raises:
        ConfigError: the file cannot be read, or is not a profile; the text says where.
    """
    if file is None:
        return Profile()
    try:
        return msgspec.json.decode(file.read_bytes(), type=Profile)
    except OSError as error:
        raise ConfigError([f"{file}: cannot be read: {error.strerror}"]) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file}: not a profile: {error}"]) from error
