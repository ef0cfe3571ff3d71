"""The virtual environment of the peers, LiteLLM's proxy and sglang-router, pinned and separate from Prism's."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path

from bench.subjects.processes import PROJECT
from simulator.errors import StudyError

PEERS = PROJECT / ".bench-peers"
PEERS_BIN = PEERS / "bin"
REQUIREMENTS = PROJECT / "requirements" / "bench-peers.txt"
STAMP = PEERS / "installed"


async def install() -> None:
    """Create the environment unless it exists, with pip's output as progress on stderr.

    Raises:
        StudyError: pip failed; the next call will try again.
    """
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == wanted:
        return
    print(f"installing the peers into {PEERS.name}/ (once, some 800 MB)", file=sys.stderr)
    await _run(sys.executable, "-m", "venv", PEERS)
    await _run(PEERS_BIN / "python", "-m", "pip", "install", "--progress-bar", "off", "-r", REQUIREMENTS)
    STAMP.write_text(wanted)


def versions() -> dict[str, str]:
    """The pinned versions in `REQUIREMENTS`, by package."""
    pins = (line.partition("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    return {name.partition("[")[0]: version for name, _, version in pins}


async def _run(*command: str | Path) -> None:
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=sys.stderr, stderr=sys.stderr)
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if code:
        raise StudyError(f"the peers cannot be installed: {' '.join(map(str, command))} ended with exit code {code}")
